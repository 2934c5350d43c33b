"""Sparse autoencoders: one file per architecture, on top of base.py."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS, SAEConfig
from saebench.saes.base import SAE as SAE
from saebench.saes.base import SAE_TYPES as SAE_TYPES
from saebench.saes.calibrate import NotCalibratedError as NotCalibratedError
from saebench.saes.files import SAEFileError as SAEFileError
from saebench.saes.files import load_sae as load_sae
from saebench.saes.files import save_sae as save_sae
from saebench.saes.loss import Dead as Dead
from saebench.saes.loss import Loss as Loss
from saebench.saes.loss import Moment as Moment

for _name, _config in SAE_CONFIGS.items():  # each module registers its class in SAE_TYPES
    if _config.__module__.startswith("saebench."):
        import_module(f"saebench.saes.{_name}")

__all__ = ["SAE", "SAE_TYPES", "Dead", "Loss", "Moment", "NotCalibratedError", "load_sae", "make_sae", "save_sae"]


def make_sae(config: SAEConfig, d_in: int, sample: Tensor, seed: int) -> SAE:
    """Return a new SAE on the CPU, initialised from training rows `sample` (N, d_in). `seed` fixes the decoder's
    directions, through a separate generator: the same on every machine, and global random state does not change."""
    sae = SAE_TYPES[config.type](config, d_in)
    sae.initialise(sample.cpu(), torch.Generator().manual_seed(seed))
    return sae
