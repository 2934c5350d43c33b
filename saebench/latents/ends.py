"""Both ends of a signed latent: positive and negative values have different meanings.

Codes with both signs are unfolded: column n holds the positive end of latent n, column n + dict_size the magnitude of
its negative end, which writes the opposite direction. So whatever is said of a latent is said of either end: keywords,
texts, density, partners, and whether another seed has found it, with whatever sign.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes


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
