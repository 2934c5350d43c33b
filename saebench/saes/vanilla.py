"""ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import VanillaConfig
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import LrRule
from saebench.saes.relu import ReLUSAE


class VanillaSAE(ReLUSAE):
    """latents = relu(pre); loss = FVU + coeff * mean over examples of sum_i latent_i ||W_dec_i|| / sqrt(variance).

    The division makes the penalty a pure number, as the FVU is: a coefficient means the same for every corpus.
    """

    lr_rule = LrRule(share=0.75, l0=3 / 8, width=1 / 6, width_by_l0=1 / 48, steps=1 / 8)

    config: VanillaConfig

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        pre = self.above(z, 0.0, moment.precision)
        codes = pre.with_values(torch.relu(pre.values))
        fvu, penalty = self.fvu(z, self.rebuilt(codes)), self.l1(codes)
        return Loss.of(fvu + moment.coeff * penalty, fvu, codes, {"train/sparsity_loss": penalty.detach()}, pre.values)
