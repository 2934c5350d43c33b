"""A gate decides which latents fire, a magnitude path how strongly (Rajamanoharan et al. 2024, 2404.16014)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from saebench.config import SAEConfig
from saebench.saes.base import SAE, Loss, Moment
from saebench.saes.calibrate import start_sparse


class GatedSAE(SAE):
    """gate = (z - b_dec) W_enc + b_enc, magnitude = (z - b_dec) W_enc * exp(r_mag) + b_mag,
    latents = relu(magnitude) where gate > 0, else 0.

    loss = FVU + coeff * L1(relu(gate)) + FVU of relu(gate) decoded by a frozen copy of the decoder. The gate learns
    from the last two terms alone, the step function has no gradient.
    """

    def __init__(self, config: SAEConfig, d_in: int) -> None:
        super().__init__(config, d_in)
        self.r_mag = nn.Parameter(torch.zeros(self.dict_size))
        self.b_mag = nn.Parameter(torch.zeros(self.dict_size))

    def initialise_from(self, z: Tensor) -> None:
        start_sparse(self, z)

    def activate(self, pre: Tensor) -> Tensor:
        return self._gate(pre, pre > self.offset)

    def _gate(self, pre: Tensor, opens: Tensor) -> Tensor:
        return torch.relu(self.magnitude(pre)) * opens

    def margins(self, pre: Tensor) -> Tensor:
        """The latent fires where both paths are positive; a closed magnitude path is closed for every offset."""
        return pre.masked_fill(self.magnitude(pre) <= 0, -torch.inf)

    def magnitude(self, gate: Tensor) -> Tensor:
        """The magnitude path shares the gate's directions: gate (B, dict_size) rescaled, with its own bias."""
        return torch.addcmul(self.b_mag, gate - self.b_enc, self.r_mag.exp())

    def loss(self, x: Tensor, moment: Moment) -> Loss:
        z = self.training_input(x)
        gate = self.pre_activations(z, moment.precision)
        latents, opened = self._gate(gate, gate > 0), torch.relu(gate)
        fvu = self.fvu(z, torch.addmm(self.b_dec, latents, self.W_dec))
        penalty = self.l1(opened)
        via_gate = self.fvu(z, torch.addmm(self.b_dec.detach(), opened, self.W_dec.detach()))
        fires = latents.detach() > 0
        return Loss(
            total=fvu + moment.coeff * penalty + via_gate,
            fvu=fvu.detach(),
            l0=fires.sum() / len(z),
            fired=fires.any(0),
            parts={"train/sparsity_loss": penalty.detach(), "train/aux_loss": via_gate.detach()},
        )
