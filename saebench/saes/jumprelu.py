"""A learned threshold per latent (Rajamanoharan et al. 2024, 2407.14435)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saebench.config import JumpReLUConfig
from saebench.saes.base import SAE, Loss, Moment
from saebench.saes.calibrate import activation_quantile, sample_pre_activations, starting_l0

_SMALLEST = 1e-6
"""Thresholds stay above 0, so that a latent that fires is positive."""


class JumpReLU(torch.autograd.Function):
    """(pre (B, F), threshold (F,), bandwidth ()) -> (pre where pre > threshold else 0, mean number that fire).

    Backward is the paper's straight-through estimator with a rectangular kernel K of width eps = bandwidth:
    d latent / d threshold = -(threshold / eps) K((pre - threshold) / eps), d fires / d threshold = -(1 / eps) K(...).
    Both look at pre-activations, not at the latents that the jump has cut already.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold, bandwidth)
        fires = pre > threshold
        return pre * fires, fires.sum() / len(pre)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        pre, threshold, bandwidth = ctx.saved_tensors
        latents_grad, l0_grad = grads
        near = (pre - threshold).abs() < bandwidth / 2
        slope = (latents_grad * near).sum(0) * threshold + near.sum(0) * (l0_grad / len(pre))
        return latents_grad * (pre > threshold), -slope / bandwidth, None


class JumpReLUSAE(SAE):
    """latents = pre where pre > threshold, else 0; loss = FVU + coeff * mean L0.

    The threshold is a raw float32 parameter (a logarithm moves by its learning rate times itself under Adam and so
    stands still), started where the L0 on training rows is about three times the target.
    """

    config: JumpReLUConfig
    bandwidth: Tensor

    def __init__(self, config: JumpReLUConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.threshold = nn.Parameter(torch.ones(self.dict_size))
        self.register_buffer("bandwidth", torch.ones(()))

    def initialise_from(self, z: Tensor) -> None:
        pre = sample_pre_activations(self, z)
        self.bandwidth.copy_(pre.std() * self.config.bandwidth)
        self.threshold.fill_(activation_quantile(pre, starting_l0(self)))
        self.constrain()

    def learning_rate_factors(self) -> dict[str, float]:
        return {"threshold": self.config.threshold_lr_factor}

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.threshold.clamp_min_(_SMALLEST)

    def activate(self, pre: Tensor) -> Tensor:
        return pre * (pre > (self.threshold + self.offset).clamp_min(_SMALLEST))

    def margins(self, pre: Tensor) -> Tensor:
        return pre - self.threshold

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        pre = self.pre_activations(z, moment.precision)
        latents, l0 = JumpReLU.apply(pre, self.threshold, self.bandwidth)  # type: ignore[no-untyped-call]
        fvu = self.fvu(z, torch.addmm(self.b_dec, latents, self.W_dec))
        return Loss(
            total=fvu + moment.coeff * l0,
            fvu=fvu.detach(),
            l0=l0.detach(),
            fired=(latents.detach() > 0).any(0),
            parts={"train/sparsity_loss": l0.detach()},
        )
