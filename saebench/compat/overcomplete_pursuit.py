"""Pursuits with overcomplete's interface: a dictionary without an encoder, for the user's own training loop.

    sae = OMPSAE(input_shape=768, nb_concepts=6144, k=32)
    residual, z, x_hat = sae(x)
    (x - x_hat).square().mean().backward()

OMPSAE solves for the non-negative values of all picks after every pick, and no gradient flows through the codes; MpSAE
takes the product with the pick as its value and may pick a concept again, with the gradient unrolled.

As in overcomplete: no bias is subtracted from the input, the residual is returned in place of the codes before the
activation, and `dropout` drops concepts in training until the first `eval()`, which turns it off permanently.
Different: least squares by coordinate descent, `max_iter` sweeps after each pick (overcomplete: as many steps of
projected gradient), so codes agree to the tolerance of overcomplete's solver; `codes` keep the dtype and device of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from saebench.compat.overcomplete import DictionaryLayer, Output


class _PursuitSAE(nn.Module, ABC):
    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        nb_concepts: int,
        k: int,
        dropout: float | None,
        dictionary_params: Mapping[str, Any] | None,
        device: str | torch.device,
    ) -> None:
        super().__init__()
        if not isinstance(input_shape, int) and len(input_shape) != 1:
            raise ValueError(f"input_shape: {input_shape}, a pursuit takes one dimension")
        if not isinstance(k, int) or not 1 <= k <= nb_concepts:
            raise ValueError(f"k: {k}, expected a whole number from 1 to nb_concepts = {nb_concepts}")
        if dropout is not None and not 0 <= dropout <= 1:
            raise ValueError(f"dropout: {dropout}, expected a number from 0 to 1")
        self.nb_concepts, self.k, self.dropout = nb_concepts, k, dropout
        width = input_shape if isinstance(input_shape, int) else input_shape[0]
        self.dictionary = DictionaryLayer(width, nb_concepts, **(dictionary_params or {}))
        self.to(device)

    def forward(self, x: Tensor) -> Output:
        """Return (residual (N, d), z (N, nb_concepts), x_hat (N, d)) for x (N, d)."""
        residual, z = self.encode(x)
        return Output(residual, z, self.decode(z))

    @abstractmethod
    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (residual, z)."""

    def decode(self, z: Tensor) -> Tensor:
        """Return reconstructions (N, d) from codes (N, nb_concepts)."""
        return z @ self.get_dictionary()

    def get_dictionary(self) -> Tensor:
        """Return the dictionary (nb_concepts, d)."""
        dictionary: Tensor = self.dictionary()
        return dictionary

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as torch does; evaluation mode turns dropout off permanently."""
        if not mode:
            self.dropout = None
        return super().train(mode)

    def _rows(self) -> Tensor:
        """Return the dictionary, with dropped concepts set to 0."""
        rows = self.get_dictionary()
        if self.dropout is None:
            return rows
        return rows * torch.bernoulli(torch.full((len(rows), 1), 1.0 - self.dropout, device=rows.device))


class MpSAE(_PursuitSAE):
    """Matching pursuit (Costa et al. 2025, 2506.03093)."""

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        nb_concepts: int,
        k: int = 1,
        dropout: float | None = None,
        encoder_module: str = "identity",
        dictionary_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        """`k`: picks per example. Raises ValueError for an invalid k, dropout or shape, or for an encoder."""
        _refuse(encoder_module)
        super().__init__(input_shape, nb_concepts, k, dropout, dictionary_params, device)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (residual, z): pick the concept with the largest absolute product k times; a concept may be picked
        again."""
        rows, residual = self._rows(), x
        z = x.new_zeros(len(x), self.nb_concepts)
        for _ in range(self.k):
            value, pick = (residual @ rows.t()).max(1, keepdim=True)
            z = z.scatter_add(1, pick, value)
            residual = residual - value * rows[pick.squeeze(1)]
        return residual, z


class OMPSAE(_PursuitSAE):
    """Orthogonal matching pursuit with values >= 0."""

    def __init__(
        self,
        input_shape: int | tuple[int, ...],
        nb_concepts: int,
        k: int = 1,
        dropout: float | None = None,
        encoder_module: str = "identity",
        dictionary_params: Mapping[str, Any] | None = None,
        device: str | torch.device = "cpu",
        max_iter: int = 10,
    ) -> None:
        """`max_iter`: sweeps over the values after each pick. Raises ValueError as MpSAE does."""
        _refuse(encoder_module)
        super().__init__(input_shape, nb_concepts, k, dropout, dictionary_params, device)
        self.max_iter = _whole(max_iter, "max_iter")

    @torch.no_grad()
    def encode(self, x: Tensor, k: int | None = None, max_iter: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (residual, z), both without gradient; `k` and `max_iter` apply to this call."""
        k, sweeps = _whole(k or self.k, "k"), _whole(max_iter or self.max_iter, "max_iter")
        rows = self._rows()
        picks = torch.zeros(len(x), k, dtype=torch.int64, device=x.device)
        values, residual = x.new_zeros(len(x), k), x.clone()
        for n in range(k):
            products = residual @ rows.t()
            products.scatter_(1, picks[:, :n], -torch.inf)
            picks[:, n] = products.argmax(1)
            for _ in range(sweeps):
                for i in range(n + 1):
                    row = rows[picks[:, i]]
                    step = (residual * row).sum(1) / row.square().sum(1).clamp_min(1e-12)
                    change = torch.maximum(-values[:, i], step)
                    values[:, i] += change
                    residual -= change.unsqueeze(1) * row
        return residual, x.new_zeros(len(x), self.nb_concepts).scatter_(1, picks, values)


def _whole(value: int, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {value}, expected a whole number above 0")
    return value


def _refuse(encoder_module: str) -> None:
    if encoder_module != "identity":
        raise ValueError(f"encoder_module: {encoder_module!r}, expected 'identity': a pursuit has no encoder")
