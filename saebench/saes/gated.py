"""A gate decides which latents fire, a magnitude path how strongly (Rajamanoharan et al. 2024, 2404.16014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saebench.config import GatedConfig
from saebench.saes import sparse
from saebench.saes.base import SAE
from saebench.saes.calibrate import start_sparse
from saebench.saes.loss import Loss, Moment
from saebench.saes.lr_rule import LrRule


class GatedSAE(SAE):
    """gate = (z - b_dec) W_enc + b_enc, magnitude = (z - b_dec) W_enc * exp(r_mag) + b_mag,
    latents = relu(magnitude) where gate > 0, else 0.

    loss = FVU + coeff * L1(relu(gate)) + FVU of relu(gate) decoded by a frozen copy of the decoder. The gate gets its
    gradient only from the last two terms: the step function has no gradient.
    """

    lr_rule = LrRule(
        share=0.5, l0=3 / 8, width=5 / 24, steps=-1 / 12, steps_at_8=1 / 6, steps_at_128=1 / 6, batch_by_l0=1 / 6
    )

    config: GatedConfig

    def __init__(self, config: GatedConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.r_mag = nn.Parameter(torch.zeros(self.dict_size, dtype=torch.float32))
        self.b_mag = nn.Parameter(torch.zeros(self.dict_size, dtype=torch.float32))

    def initialise_from(self, z: Tensor) -> None:
        start_sparse(self, z)

    def activate(self, pre: Tensor) -> Tensor:
        return torch.relu(self.magnitude(pre)) * (pre > self.offset)

    def margins(self, pre: Tensor) -> Tensor:
        """Return the gate's margins, -inf if the magnitude path is not positive: no offset makes such a latent fire."""
        return pre.masked_fill(self.magnitude(pre) <= 0, -torch.inf)

    def magnitude(self, gate: Tensor) -> Tensor:
        """Return the magnitudes: gate (B, dict_size) rescaled per latent, with the magnitude path's bias."""
        return torch.addcmul(self.b_mag, gate - self.b_enc, self.r_mag.exp())

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        gate = self.above(z, 0.0, moment.precision)
        opened = gate.with_values(torch.relu(gate.values))
        magnitude = torch.addcmul(
            gate.spread(self.b_mag), gate.values - gate.spread(self.b_enc), gate.spread(self.r_mag.exp())
        )
        codes = gate.with_values(torch.relu(magnitude) * (gate.values > 0))
        fvu, penalty = self.fvu(z, self.rebuilt(codes)), self.l1(opened)
        via_gate = self.fvu(z, sparse.decode(opened, self.W_dec.detach(), self.b_dec.detach()))
        parts: dict[str, Tensor | float] = {
            "train/sparsity_loss": penalty.detach(),
            "train/aux_loss": via_gate.detach(),
        }
        return Loss.of(fvu + moment.coeff * penalty + via_gate, fvu, codes, parts, gate.values)
