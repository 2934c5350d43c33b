"""What keeps a decoder's rows at length 1 and an encoder near its decoder, in place and a block of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes.kernels import blocks


@torch.no_grad()
def shrink_across(encoder: Tensor, decoder: Tensor, share: Tensor | float) -> None:
    """Shrink by `share` the part of each encoder row (F, d) that is orthogonal to the unit decoder row (F, d)."""
    for rows in blocks(len(decoder), decoder.shape[1], decoder.device):
        now, along = encoder[rows], decoder[rows]
        now.lerp_((now * along).sum(1, keepdim=True) * along, share)


@torch.no_grad()
def remove_along(gradient: Tensor, decoder: Tensor) -> None:
    """Remove from a gradient (F, d) the part along each unit decoder row (F, d)."""
    for rows in blocks(len(decoder), decoder.shape[1], decoder.device):
        part, along = gradient[rows], decoder[rows]
        part.addcmul_((part * along).sum(1, keepdim=True), along, value=-1)


@torch.no_grad()
def to_unit_length(decoder: Tensor) -> None:
    """Divide each row (F, d) by its length."""
    for rows in blocks(len(decoder), decoder.shape[1], decoder.device):
        now = decoder[rows]
        now.div_(torch.linalg.vector_norm(now, dim=1, keepdim=True).clamp_min(1e-12))
