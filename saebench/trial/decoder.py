"""c_dec: the mean absolute cosine of a decoder's rows (2508.16560).

Below the number of features that are active in the data, latents that mix features have rows closer to each other than
those of an SAE whose latents are the features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from saebench.saes.kernels import product

ROWS = 4096
"""At most this many rows are compared with each other, at equal distances among the latents that fire."""
BLOCK = 1 << 22
"""Cosines at a time."""


@torch.no_grad()
def mean_absolute_cosine(rows: Tensor) -> float:
    """Return the mean of |cos| over pairs of different rows (N, d). Raises ValueError for fewer than two rows."""
    if len(rows) < 2:
        raise ValueError(f"{len(rows)} latents fire; c_dec needs 2")
    if len(rows) > ROWS:
        rows = rows[torch.arange(ROWS, device=rows.device) * len(rows) // ROWS]
    unit = torch.nn.functional.normalize(rows.float(), dim=1)
    parts = torch.split(unit, max(1, BLOCK // len(unit)))
    total = sum(float(product(part, unit.t()).abs_().sum(dtype=torch.float64)) for part in parts)
    itself = float(unit.square().sum(1).sum(dtype=torch.float64))
    return (total - itself) / (len(unit) * (len(unit) - 1))


def random_floor(d_in: int) -> float:
    """Return the expected |cos| of two random directions in d_in dimensions, about sqrt(2 / (pi d_in))."""
    return math.exp(math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)) / math.sqrt(math.pi)
