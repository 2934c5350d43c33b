"""Both ends of a signed latent: positive and negative values have different meanings.

Codes with both signs are unfolded: column n holds the positive end of latent n, column n + dict_size the magnitude of
its negative end, which writes the opposite direction. So whatever is said of a latent is said of either end: keywords,
texts, density, partners, and whether another seed has found it, with whatever sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes


@dataclass(frozen=True)
class Ends:
    """How the ends of `dict_size` latents are numbered and named; unless `signed`, a latent is its only end."""

    dict_size: int
    signed: bool

    def of(self, latent: int, value: float) -> int:
        """Return the end of a latent that fires with this activation."""
        return latent + self.dict_size if self.signed and value < 0 else latent

    def latent(self, end: int) -> int:
        """Return the latent of an end."""
        return end % self.dict_size

    def sign(self, end: int) -> float:
        """Return the sign of an end's activations: 1 or -1."""
        return -1.0 if end >= self.dict_size else 1.0

    def mark(self, end: int) -> str:
        """Return "+" or "-"; empty if the latents are not signed."""
        return ("-" if self.sign(end) < 0 else "+") if self.signed else ""

    def name(self, end: int) -> int | str:
        """Return a latent's number; of an end, with its sign: 17+, 17-."""
        return f"{self.latent(end)}{self.mark(end)}" if self.signed else end

    def directions(self, decoder: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the direction of each end: a signed latent writes its decoder row both ways."""
        return both_ways(decoder) if self.signed else decoder


def unfolded(codes: Codes) -> Codes:
    """Codes of (rows, 2 dict_size) without a negative value."""
    from scipy.sparse import csr_array

    latents = np.where(codes.values < 0, codes.latents + codes.dict_size, codes.latents).astype(np.int32)
    shape = (codes.rows, 2 * codes.dict_size)
    matrix = csr_array((np.abs(codes.values), latents, codes.offsets.copy()), shape=shape)
    matrix.sort_indices()
    return Codes(matrix.data, matrix.indices, matrix.indptr.astype(np.int64), shape[1])


def both_ways(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Decoder rows of the positive ends, then those of the negative ones."""
    return np.concatenate([rows, -rows])
