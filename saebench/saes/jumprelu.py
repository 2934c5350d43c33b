"""A learned threshold per latent (Rajamanoharan et al. 2024, 2407.14435)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from saebench.config import JumpReLUConfig
from saebench.saes.base import SAE
from saebench.saes.calibrate import activation_quantile, sample_pre_activations, starting_l0
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import LrRule

SMALLEST = 1e-6
"""Thresholds stay above 0, so that a latent that fires is positive."""


class JumpReLU(torch.autograd.Function):
    """(pre, threshold, bandwidth (), rows) -> (pre where pre > threshold else 0, number that fire / rows).

    pre is (B, F) with threshold (F,), or pairs (P,) of it with the threshold of each; the pairs must include all
    entries above their threshold minus half a bandwidth. Backward is the paper's straight-through estimator with a
    rectangular kernel K of width eps = bandwidth: d latent / d threshold = -(threshold / eps) K((pre - threshold) /
    eps), d fires / d threshold = -(1 / eps) K(...). Both depend on pre-activations, not on the thresholded latents.
    """

    @staticmethod
    def forward(ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pre, threshold, bandwidth)
        ctx.rows = rows
        fires = pre > threshold
        return pre * fires, fires.sum() / rows

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        pre, threshold, bandwidth = ctx.saved_tensors
        latents_grad, l0_grad = grads
        near = (pre - threshold).abs() < bandwidth / 2
        slope = (latents_grad * threshold + l0_grad / ctx.rows) * near / -bandwidth
        return latents_grad * (pre > threshold), slope.sum_to_size(threshold.shape), None, None


class JumpReLUSAE(SAE):
    """latents = pre where pre > threshold, else 0; loss = FVU + coeff * mean L0.

    The threshold is a raw float32 parameter (with a logarithm, Adam's step would be the learning rate times the
    threshold: almost nothing), initialised so that the L0 on training rows is the target. If it starts at three times
    the target, as in the other penalised types, a tenth of the latents dies while the thresholds rise and, without a
    gradient, stays dead (experiments/LOG.md).
    """

    lr_rule = LrRule(
        share=1.1,
        l0=-1 / 6,
        width=7 / 24,
        width_by_l0=1 / 8,
        steps=5 / 24,
        steps_at_8=1 / 12,
        steps_at_8_by_width=1 / 4,
    )

    config: JumpReLUConfig
    bandwidth: Tensor

    def __init__(self, config: JumpReLUConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.threshold = nn.Parameter(torch.ones(self.dict_size, dtype=torch.float32))
        self.register_buffer("bandwidth", torch.ones((), dtype=torch.float32))

    def initialise_from(self, z: Tensor) -> None:
        pre = sample_pre_activations(self, z)
        self.bandwidth.copy_(pre.std() / self.config.encoder_scale * self.config.bandwidth)
        self.threshold.fill_(activation_quantile(pre, self.config.target_l0 or starting_l0(self)))
        self.constrain()

    def learning_rate_factors(self) -> dict[str, float]:
        return {"threshold": self.config.threshold_lr_factor}

    @torch.no_grad()
    def constrain(self) -> None:
        super().constrain()
        self.threshold.clamp_min_(SMALLEST)

    @torch.no_grad()
    def raise_thresholds(self, shift: Tensor) -> None:
        self.threshold.add_(shift).clamp_min_(SMALLEST)

    def activate(self, pre: Tensor) -> Tensor:
        return pre * (pre > (self.threshold + self.offset).clamp_min(SMALLEST))

    def margins(self, pre: Tensor) -> Tensor:
        return pre - self.threshold

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        pre = self.above(z, self.threshold.detach() - self.bandwidth / 2, moment.precision)
        threshold = pre.spread(self.threshold)
        values, l0 = JumpReLU.apply(pre.values, threshold, self.bandwidth, pre.rows)  # type: ignore[no-untyped-call]
        codes = pre.with_values(values)
        fvu = self.fvu(z, self.rebuilt(codes))
        parts: dict[str, Tensor | float] = {"train/sparsity_loss": l0.detach()}
        return Loss.of(fvu + moment.coeff * l0, fvu, codes, parts, pre.values.detach() - threshold.detach())
