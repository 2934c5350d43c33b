"""Neighbours of latents: by decoder direction, and by the texts on which they fire together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.errors import UserError
from saebench.latents.codes import Codes
from saebench.latents.threads import on_threads

SAME = 0.7
"""Cosine above which a latent of another SAE counts as the same, as in the report's table of stability."""
TWIN = 0.9
"""Cosine above which two latents of one SAE are twins."""
NEAREST = 5
"""Neighbours kept per latent in tables."""
EDGES = 3
"""Partners per latent in the graph of families: with 20, 1,536 latents fall into 5 families, with 3 into 14."""
_CELLS = 1 << 22
"""Pairs of latents per block of the computation, and per thread (16 MiB)."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """(rows, k) the best partners of each row, best first; -1 and NaN if there are fewer."""

    index: NDArray[np.int64]
    value: NDArray[np.float64]

    def pairs(self, row: int) -> list[tuple[int, float]]:
        """Return (partner, value) of a row's partners, best first."""
        both = zip(self.index[row].tolist(), self.value[row].tolist(), strict=True)
        return [(partner, value) for partner, value in both if partner >= 0]


def unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Return rows scaled to length 1; a row of zeros stays zero."""
    wide = rows.astype(np.float64)
    scaled: NDArray[np.float32] = (wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)).astype(
        np.float32
    )
    return scaled


def nearest_by_cosine(
    rows: NDArray[np.float32], others: NDArray[np.float32] | None = None, k: int = NEAREST
) -> Nearest:
    """For each row (n, d) its `k` nearest among `others` (m, d), the lower number first among equals; without them
    among the other rows."""
    a = unit(rows)
    b = a if others is None else unit(others)
    k = min(k, len(b) - (others is None))
    index, value = np.full((len(a), max(k, 0)), -1, np.int64), np.full((len(a), max(k, 0)), np.nan)
    if k < 1:
        return Nearest(index, value)
    size = max(1, _CELLS // len(b))

    def work(pieces: slice) -> None:
        for piece in range(pieces.start, pieces.stop):
            start = piece * size
            cosine = a[start : start + size] @ b.T
            each = np.arange(len(cosine))
            if others is None:
                cosine[each, start + each] = -np.inf
            for place in range(k):  # as many passes as there are partners: far less work than to sort
                best = cosine.argmax(axis=1)
                index[start : start + size, place], value[start : start + size, place] = best, cosine[each, best]
                cosine[each, best] = -np.inf

    on_threads(work, -(-len(a) // size))
    return Nearest(index, value)


def coactivation(codes: Codes, latents: NDArray[np.int64], k: int = NEAREST) -> Nearest:
    """For each of `latents` the `k` others (as positions in `latents`) that fire on the same texts, by the correlation
    of firing

        phi(i, j) = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j))

    which is the same in both directions, and 0 for two independent latents. Only phi > 0 counts.
    """
    from saebench.latents.counting import score_partners

    firing = _firing(codes, latents)
    by_latent = firing.tocsc()
    alone = np.asarray(firing.sum(axis=0), dtype=np.float64).ravel()
    spread = np.sqrt(alone * (codes.rows - alone))
    index, value = np.full((len(latents), k), -1, np.int64), np.full((len(latents), k), -np.inf)
    given = (by_latent.indptr, by_latent.indices, firing.indptr, firing.indices, alone, spread, float(codes.rows))
    on_threads(lambda part: score_partners(part.start, part.stop, *given, index, value), len(latents))
    value[index < 0] = np.nan
    return Nearest(index, value)


def _firing(codes: Codes, latents: NDArray[np.int64]):  # type: ignore[no-untyped-def]  # scipy has no types
    """(rows, len(latents)) csr_array of 1 where a latent fires."""
    matrix = codes.matrix().tocsc()[:, latents].tocsr()
    matrix.data = np.ones_like(matrix.data, dtype=np.float32)
    return matrix


def found_again(decoder: NDArray[np.float32], others: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
    """(latents,) share of the other dictionaries that have a row with a cosine above SAME; NaN without others."""
    if not others:
        return np.full(len(decoder), np.nan)
    hits = [nearest_by_cosine(decoder, other, 1).value[:, 0] > SAME if len(other) else 0.0 for other in others]
    return np.asarray(np.mean([np.broadcast_to(hit, len(decoder)) for hit in hits], axis=0), np.float64)


def plane(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 2) the two principal components of unit rows; the sign of each such that its largest loading is positive."""
    centred = unit(rows).astype(np.float64)
    if len(centred) < 2:
        return np.zeros((len(centred), 2))
    centred -= centred.mean(0)
    directions = np.linalg.eigh(centred.T @ centred).eigenvectors[:, ::-1][:, :2]
    directions *= np.sign(directions[np.abs(directions).argmax(0), np.arange(directions.shape[1])])
    placed = centred @ directions
    return placed if placed.shape[1] == 2 else np.hstack([placed, np.zeros((len(placed), 1))])


def umap_plane(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """(n, 2) by UMAP on cosines, with a fixed seed; needs umap-learn."""
    try:
        from umap import UMAP  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise UserError("--map umap: the package umap-learn is not installed (pip install umap-learn)") from error
    if len(rows) < 20:
        return plane(rows)
    placed = UMAP(metric="cosine", random_state=0, n_jobs=1).fit_transform(unit(rows))
    return np.asarray(placed - placed.mean(0), np.float64)


PLANS: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float64]]] = {"pca": plane, "umap": umap_plane}
"""Name -> function that maps decoder rows to a plane; both are deterministic."""
