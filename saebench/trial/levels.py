"""The error of an SAE that serves several numbers of latents per example, at each of them (`SAEConfig.levels`)."""

from __future__ import annotations

import torch
from torch import Tensor

from saebench.saes import SAE


class AtLevels:
    """Running sums over the batches of a part: squared errors and L0 with the K largest latents of each text alone."""

    def __init__(self, sae: SAE) -> None:
        self._sae = sae
        self.error = dict.fromkeys(sae.config.levels, 0.0)
        self.fires = dict.fromkeys(sae.config.levels, 0)

    @torch.no_grad()
    def update(self, x: Tensor, latents: Tensor) -> None:
        """Add embeddings (B, d_in) and their codes (B, dict_size)."""
        for k in self.error:
            few = largest(latents, k)
            _, side = self._sae.preprocessing(x)
            x_hat = self._sae.decode(few, side)
            self.error[k] += float((x.double() - x_hat.double()).square().sum())
            self.fires[k] += int((few != 0).sum())

    def values(self, whole: dict[str, float]) -> dict[str, float]:
        """Return metric key -> value; `whole` has the metrics of the whole code on the same texts."""
        examples = whole["eval/examples"]
        squared_error = whole["eval/mse"] * examples * self._sae.d_in
        if not squared_error:
            return {}
        variance = squared_error / whole["eval/fvu"]
        found = {f"eval/fvu_at/{k}": error / variance for k, error in self.error.items()}
        return found | {f"eval/l0_at/{k}": fires / examples for k, fires in self.fires.items()}


def largest(latents: Tensor, k: int) -> Tensor:
    """Return latents (B, dict_size) of which all but the k of largest magnitude are 0."""
    if k >= latents.shape[1]:
        return latents
    index = latents.abs().topk(k, dim=1).indices
    return torch.zeros_like(latents).scatter(1, index, latents.gather(1, index))
