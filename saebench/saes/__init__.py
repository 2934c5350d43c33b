"""Sparse autoencoders: one file per architecture, on what base.py gives all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import AnySAEConfig
from saebench.saes.base import SAE as SAE
from saebench.saes.base import Dead as Dead
from saebench.saes.base import Loss as Loss
from saebench.saes.base import Moment as Moment
from saebench.saes.base import NotCalibratedError as NotCalibratedError
from saebench.saes.batchtopk import BatchTopKSAE
from saebench.saes.files import SAEFileError as SAEFileError
from saebench.saes.files import load_sae as load_sae
from saebench.saes.files import save_sae as save_sae
from saebench.saes.gated import GatedSAE
from saebench.saes.jumprelu import JumpReLUSAE
from saebench.saes.matryoshka import MatryoshkaSAE
from saebench.saes.p_anneal import PAnnealSAE
from saebench.saes.topk import TopKSAE
from saebench.saes.vanilla import VanillaSAE

SAE_TYPES: dict[str, type[SAE]] = {
    "vanilla": VanillaSAE,
    "topk": TopKSAE,
    "batchtopk": BatchTopKSAE,
    "jumprelu": JumpReLUSAE,
    "gated": GatedSAE,
    "matryoshka": MatryoshkaSAE,
    "p_anneal": PAnnealSAE,
}

__all__ = ["SAE", "SAE_TYPES", "Dead", "Loss", "Moment", "NotCalibratedError", "load_sae", "make_sae", "save_sae"]
__all__ += [t.__name__ for t in SAE_TYPES.values()]


def make_sae(config: AnySAEConfig, d_in: int, sample: Tensor, seed: int) -> SAE:
    """A new SAE on the CPU, started from training rows `sample` (N, d_in). `seed` fixes the decoder's directions,
    through a generator of its own: the same on every machine, and nobody else's random numbers change."""
    sae = SAE_TYPES[config.type](config, d_in)
    sae.initialise(sample.cpu(), torch.Generator().manual_seed(seed))
    return sae
