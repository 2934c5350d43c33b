"""An Lp penalty whose p falls from 1 in the course of the run (Karvonen et al. 2024, 2408.00113)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import PAnnealConfig
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import LrRule
from saebench.saes.penalty import ramp
from saebench.saes.relu import ReLUSAE
from saebench.saes.sparse import Codes

_SMOOTHING = 1e-3
"""In standard deviations; keeps the slope of f^p finite at 0."""


class PAnnealSAE(ReLUSAE):
    """latents = relu(pre); loss = FVU + coeff * (L1 / Lp) * Lp, Lp = mean over examples of sum_i (latent_i + 1e-3)^p.

    The factor L1 / Lp is a constant to the gradient: the penalty keeps the size it would have at p = 1, so that the
    coefficient means the same while p falls. p is 1 until `anneal_start`, then falls evenly to `p_end` at the end.
    """

    lr_rule = LrRule(share=0.8, l0=1 / 4, width=1 / 6, width_by_l0=1 / 24, steps=5 / 24, steps_at_8=1 / 6)
    """With p below 1 the penalty is steepest for weak latents, and closes more of them in a long run."""

    config: PAnnealConfig

    def exponent(self, progress: Tensor | float) -> Tensor | float:
        """Return p at this share of the run."""
        start = self.config.anneal_start
        return 1 - (1 - self.config.p_end) * ramp(progress - start, max(1 - start, 1e-9))

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        pre = self.above(z, 0.0, moment.precision)
        codes = pre.with_values(torch.relu(pre.values))
        fvu, l1, p = self.fvu(z, self.rebuilt(codes)), self.l1(codes), self.exponent(moment.progress)
        lp = self.lp(codes, p)
        penalty = lp * (l1 / lp.clamp_min(1e-12)).detach()
        parts: dict[str, Tensor | float] = {"train/sparsity_loss": l1.detach(), "train/p": p}
        return Loss.of(fvu + moment.coeff * penalty, fvu, codes, parts, pre.values)

    def lp(self, codes: Codes, p: Tensor | float) -> Tensor:
        """Return the mean over examples of sum_i ((f_i + s)^p - s^p), f_i in standard deviations of training rows."""
        weighted = codes.values * codes.spread(torch.linalg.vector_norm(self.W_dec, dim=1) / self.variance.sqrt())
        lp: Tensor = ((weighted + _SMOOTHING).pow(p) - _SMOOTHING**p).sum() / codes.rows
        return lp
