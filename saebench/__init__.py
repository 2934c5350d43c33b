"""Sweeps of sparse autoencoders over sentence embeddings."""
