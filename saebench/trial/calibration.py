"""The training rows from which an SAE is initialised, and those of them that are set aside for calibration."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.trial.store import Store

SAMPLE_ROWS = 16_384
"""Training rows from which preprocessing, b_dec and thresholds are initialised."""


def calibration_places(count: int, num_train: int) -> Tensor:
    """Return which of `count` sampled rows are never trained on: a twentieth of the training rows, but between 512 (or
    a fifth of them) and 4096. A threshold from rows that the SAE has memorised would let too many latents fire on new
    ones: 4 to 12% on 18,000 glosses."""
    held = min(4096, count, max(num_train // 20, min(512, num_train // 5), 1))
    return torch.arange(held) * count // held


def set_aside(store: Store, sample: Tensor) -> Tensor:
    """Keep calibration rows out of the batches of the store; return these rows. `sample` is
    store.sample(SAMPLE_ROWS)."""
    store.set_aside(SAMPLE_ROWS, calibration_places(len(sample), store.num_train))
    return calibration_rows(sample, store.num_train)


def calibration_rows(sample: Tensor, num_train: int) -> Tensor:
    """Return the calibration rows of the store's sample."""
    return sample[calibration_places(len(sample), num_train).to(sample.device)]


def without_calibration(sample: Tensor, num_train: int) -> Tensor:
    """Return the other rows of the sample, because a decoder must not start from calibration rows. All rows if fewer
    than two would be left."""
    rest = torch.ones(len(sample), dtype=torch.bool, device=sample.device)
    rest[calibration_places(len(sample), num_train).to(sample.device)] = False
    return sample[rest] if rest.sum() >= 2 else sample
