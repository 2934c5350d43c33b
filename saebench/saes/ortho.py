"""OrtSAE's penalty on decoder rows close to each other (Korznikov et al. 2025, arXiv 2509.22033), for every type."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from saebench.config import SAEConfig
from saebench.saes.kernels import product

BLOCK = 1 << 22
"""Cosines computed at a time (16 MiB)."""


class Orthogonality:
    """penalty = mean over latents i of max_j cos(d_i, d_j)^2, j among the other latents of i's chunk.

    Chunks are as few and as equal as `chunk` allows, and drawn anew in every step, so that the cost grows with the
    number of latents and not with its square. `signed`: the largest |cos| counts, because a row and its opposite are
    the ends of one latent. Everything stays on the device, and needs no sync.
    """

    def __init__(self, dict_size: int, chunk: int, *, signed: bool, device: torch.device | str = "cpu") -> None:
        self.signed = signed
        self.chunks = -(-dict_size // chunk)
        generator = torch.Generator().manual_seed(0)
        self._shuffle = torch.randperm(dict_size, generator=generator).to(device)
        self.order = torch.arange(dict_size, device=device)

    @classmethod
    def of(cls, config: SAEConfig, dict_size: int, device: torch.device) -> Self | None:
        """Return the penalty of a config; None if it has none."""
        if not config.ortho_coeff:
            return None
        return cls(dict_size, config.ortho_chunk, signed=config.signed, device=device)

    def penalty(self, W_dec: Tensor) -> Tensor:
        """Return the penalty of unit rows (dict_size, d_in), and draw the chunks of the next call."""
        nearest = self.nearest(W_dec.detach())
        cosine = (W_dec * W_dec.index_select(0, nearest)).sum(1)
        if self.chunks > 1:
            self.order.copy_(self.order.index_select(0, self._shuffle))
        return cosine.square().mean()

    @torch.no_grad()
    def nearest(self, rows: Tensor) -> Tensor:
        """Return (dict_size,) the latent of the same chunk whose row has the largest cosine with each row."""
        found = torch.empty_like(self.order)
        for latents in torch.tensor_split(self.order, self.chunks):
            here = rows.index_select(0, latents)
            for part in torch.split(torch.arange(len(latents), device=rows.device), max(1, BLOCK // len(latents))):
                cosine = product(here.index_select(0, part), here.t())
                cosine = cosine.abs_() if self.signed else cosine
                cosine.scatter_(1, part.unsqueeze(1), -torch.inf)  # not itself
                found.index_copy_(0, latents.index_select(0, part), latents.index_select(0, cosine.argmax(1)))
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors, not copies, that the chunks to come depend on."""
        return {"order": self.order} if self.chunks > 1 else {}
