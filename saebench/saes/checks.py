"""What an SAE requires of the tensors that it is given."""

from __future__ import annotations

import torch
from torch import Tensor


def check_type(x: Tensor, name: str) -> None:
    """Raise TypeError if x is not a floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} of type {type(x).__name__}: expected a tensor, as torch.from_numpy makes it")
    if not x.is_floating_point():
        raise TypeError(f"{name} of type {x.dtype}: expected floating point")


def check_width(x: Tensor, width: int, name: str) -> None:
    """Raise ValueError if x is not of shape (B, width)."""
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"{name} of shape {tuple(x.shape)}: expected (B, {width})")


def check_finite(x: Tensor) -> Tensor:
    """Return x (B, d); raise ValueError if a row holds NaN or inf. Waits for the device."""
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).nonzero()[0])
        raise ValueError(f"row {bad} of the batch holds NaN or inf")
    return x
