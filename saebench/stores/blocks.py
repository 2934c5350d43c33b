"""How a stream of texts is divided into blocks, and the seeds of their shuffles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """`count` consecutive training texts of one pass over the dataset."""

    epoch: int
    start: int
    count: int


@dataclass(frozen=True)
class StreamSettings:
    """How a stream is divided into blocks and shuffled."""

    validation: float
    """Share of the texts."""
    test: float
    """Share of the texts."""
    encode_batch: int
    """Texts per call of the encoder."""
    batches_in_buffer: int
    """Calls of the encoder per block."""
    batch_size: int
    seed: int
    endless: bool
    """Start again at the end of the stream, instead of raising DataExhausted."""


def seed_of(settings: StreamSettings, block: Block, use: int) -> int:
    """Return a 63-bit seed derived from the store's seed, the block and the use."""
    state = 0
    for value in (settings.seed, block.epoch, block.start, block.count, use):
        state = (state * 6364136223846793005 + value + 1442695040888963407) % 2**63
    return state
