"""What the types with a ReLU and an L1 penalty have in common: their start, and the correction of their shrinkage."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import SAEConfig
from saebench.saes.base import SAE
from saebench.saes.calibrate import start_sparse


class ReLUSAE(SAE):
    """latents = scale * relu(pre - offset); with `target_l0`, `calibrate` sets both, else they stay 1 and 0.

    An L1 penalty makes latents too small (Wright and Sharkey 2024, "Addressing feature suppression in SAEs"). `scale`
    is one number that takes most of that back, and does not change which latents fire. Training does not use it.
    """

    scale: Tensor

    def __init__(self, config: SAEConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.register_buffer("scale", torch.ones((), dtype=torch.float32))

    def initialise_from(self, z: Tensor) -> None:
        start_sparse(self, z)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre - self.offset) * self.scale

    @torch.no_grad()
    def calibrate(self, rows: Tensor) -> None:
        """Set `offset` as the base class does; with `target_l0` also `scale`, by least squares on the rows (N, d_in):
        sum <z - b_dec, r> / sum |r|^2 with r = latents W_dec, or 1 where that is not above 0."""
        super().calibrate(rows)
        if self.target_l0 is None:
            return
        self.scale.fill_(1.0)
        along, length = self.b_dec.new_zeros(2, dtype=torch.float64)
        for z in self.in_chunks(rows):
            r = self.activate(self.pre_activations(z)) @ self.W_dec
            along += (r * (z - self.b_dec)).sum(dtype=torch.float64)
            length += r.square().sum(dtype=torch.float64)
        if along > 0:
            self.scale.copy_(along / length)
