"""Thresholds set from training rows: exact, and in memory that does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.saes.base import SAE

_CHUNK = 1 << 23
"""Pre-activations per chunk (32 MiB)."""


class NotCalibratedError(UserError, RuntimeError):
    """Raised if an inference threshold was never set; without it the code would be dense."""


def rows_per_chunk(dict_size: int) -> int:
    """Return the number of examples whose pre-activations fill a chunk."""
    return max(1, _CHUNK // dict_size)


@torch.no_grad()
def threshold_for(chunks: Iterable[Tensor], count: int, floor: float = 0.0) -> float:
    """Return the value that exactly `count` of the numbers above `floor` in the chunks exceed (float32).

    It is halfway between the count-th largest number and the next one. If there are not more than `count` numbers, it
    is `floor`, or just below all of them if `floor` is -inf. If the count-th and the next one are equal, all numbers
    equal to them are excluded. Keeps at most 2 * count numbers and one chunk in memory.
    """
    if count < 1:
        raise ValueError(f"count: {count}: must be at least 1 value above the threshold")
    kept, bound = torch.empty(0, dtype=torch.float32), floor
    for chunk in chunks:
        kept = torch.cat([kept.to(chunk), chunk[chunk > bound]])
        if len(kept) > 2 * (count + 1):
            kept = torch.topk(kept, count + 1, sorted=False).values
            bound = float(kept.min())
    if len(kept) <= count:
        return floor if floor > -torch.inf else _below(kept)
    top = torch.topk(kept, count + 1, sorted=False).values.sort().values
    below, at = top[0], top[1]
    middle = below + (at - below) / 2
    return float(middle if middle < at else below)


def _below(values: Tensor) -> float:
    """Return the next float below all values; 0 if there are no values."""
    return float(torch.nextafter(values.min(), values.new_tensor(-torch.inf))) if len(values) else 0.0


@torch.no_grad()
def sample_pre_activations(sae: SAE, z: Tensor) -> Tensor:
    """Return the pre-activations of as many rows of z as fit one chunk, a few thousand at most."""
    return sae.pre_activations(z[: min(2048, rows_per_chunk(sae.dict_size))])


def activation_quantile(pre: Tensor, l0: float) -> float:
    """Return the threshold, at least 0, that on average `l0` entries per row of pre (B, F) exceed."""
    return threshold_for([pre], max(1, round(min(l0, 0.5 * pre.shape[1]) * len(pre))))


def usual_l0(sae: SAE) -> float:
    """Return the L0 for which an SAE is prepared: its k or `target_l0`, or d_in / 12 if a coefficient sets it."""
    level = sae.config.level
    return level.get("k") or level.get("target_l0") or sae.d_in / 12


def starting_l0(sae: SAE) -> float:
    """Return the L0 with which a penalised SAE starts: three times the one for which it is prepared."""
    return 3 * usual_l0(sae)


@torch.no_grad()
def start_sparse(sae: SAE, z: Tensor) -> None:
    """Lower the encoder's bias until the L0 on rows z (N, d_in) is `starting_l0`: without this, half the latents would
    fire at the start, and the reconstruction would be several times too long."""
    sae.b_enc.sub_(activation_quantile(sample_pre_activations(sae, z), starting_l0(sae)))
