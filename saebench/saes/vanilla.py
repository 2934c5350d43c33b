"""ReLU with an L1 penalty (Bricken et al. 2023, "Towards Monosemanticity")."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.config import VanillaConfig
from saebench.saes.base import SAE
from saebench.saes.calibrate import start_sparse
from saebench.saes.loss import Loss, Moment


class VanillaSAE(SAE):
    """latents = relu(pre); loss = FVU + coeff * mean over examples of sum_i latent_i ||W_dec_i|| / sqrt(variance).

    The division makes the penalty a pure number, as the FVU is: a coefficient means the same for every corpus.
    """

    default_encoder_decay = 0.25
    """With an L1 penalty more costs 2% of the FVU over many epochs (experiments/recipe)."""

    config: VanillaConfig

    def initialise_from(self, z: Tensor) -> None:
        start_sparse(self, z)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(pre - self.offset)

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        pre = self.above(z, 0.0, moment.precision)
        codes = pre.with_values(torch.relu(pre.values))
        fvu, penalty = self.fvu(z, self.rebuilt(codes)), self.l1(codes)
        return Loss.of(fvu + moment.coeff * penalty, fvu, codes, {"train/sparsity_loss": penalty.detach()})
