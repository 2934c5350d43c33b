"""The invertible step from the embedding space to the SAE's model space; fitted once, saved with the SAE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from saebench.config import Preprocess


class Side(NamedTuple):
    """Inverse of the step: x = z * scale + shift, both of a shape that broadcasts to (B, d_in).

    For `unit` and `layer_norm` these are numbers per example that the code does not carry: a reconstruction in the
    original space gets them from the input. The other steps have one shift and one scale for all examples.
    """

    shift: Tensor
    scale: Tensor


class Preprocessing(nn.Module):
    """z = (x - shift) / scale.

    none: unchanged. center: shift = mean of the training rows. center_scale: then one scale for all, so that the mean
    squared length of z is 1. unit: each example divided by its length. layer_norm: each example minus its mean over
    the dimensions, divided by the length of the result (its standard deviation times sqrt(d_in)), so that it too
    has length 1 and the default learning rates apply.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, kind: Preprocess, d_in: int) -> None:
        super().__init__()
        self.kind = kind
        self.register_buffer("shift", torch.zeros(d_in, dtype=torch.float32))
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    @torch.no_grad()
    def fit(self, sample: Tensor) -> None:
        """Set shift and scale from training rows (N, d_in). For per-example steps they become the means over the
        sample, which `undo` uses for a code without its example."""
        x = sample.double()
        if self.kind in ("center", "center_scale"):
            self.shift.copy_(x.mean(0))
            if self.kind == "center_scale":
                self.scale.copy_((x - x.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12))
        elif self.kind in ("unit", "layer_norm"):
            side = self._per_example(x)
            self.shift.copy_(side.shift.mean().expand_as(self.shift))
            self.scale.copy_(side.scale.mean())

    def forward(self, x: Tensor) -> tuple[Tensor, Side]:
        """Return (z (B, d_in), its inverse) for x (B, d_in)."""
        if self.kind == "none":
            return x, Side(self.shift, self.scale)
        side = self._per_example(x) if self.kind in ("unit", "layer_norm") else Side(self.shift, self.scale)
        return (x - side.shift) / side.scale, side

    def undo(self, z: Tensor, side: Side | None = None) -> Tensor:
        """Return z (B, d_in) in the original space; without `side`, use the fitted means."""
        if self.kind == "none":
            return z
        shift, scale = side or Side(self.shift, self.scale)
        return z * scale + shift

    def _per_example(self, x: Tensor) -> Side:
        """Return shift and scale per example; a row of length 0 (zeros, or constant for layer_norm) becomes 0 and is
        restored by `undo`."""
        shift = x.mean(1, keepdim=True) if self.kind == "layer_norm" else x.new_zeros(())
        scale = torch.linalg.vector_norm(x - shift, dim=1, keepdim=True).clamp_min(1e-12)
        return Side(shift, scale)
