"""Neighbours of latents: by decoder direction, and by the texts on which they fire together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.errors import UserError
from saebench.latents.codes import Codes
from saebench.latents.threads import prefetched

SAME = 0.7
"""Cosine above which a latent of another SAE counts as the same, as in the report's table of stability."""
TWIN = 0.9
"""Cosine above which two latents of one SAE are twins."""
NEAREST = 5
"""Neighbours kept per latent in tables."""
EDGES = 3
"""Partners per latent in the graph of families: with 20, 1,536 latents fall into 5 families, with 3 into 14."""
_CELLS = 1 << 24
"""Pairs of latents per block of the computation."""


@dataclass(frozen=True, eq=False)
class Nearest:
    """(rows, k) the best partners of each row, best first; -1 and NaN if there are fewer."""

    index: NDArray[np.int64]
    value: NDArray[np.float64]


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
    """For each row (n, d) its `k` nearest among `others` (m, d); without them among the other rows."""
    a = unit(rows)
    b = a if others is None else unit(others)
    k = min(k, len(b) - (others is None))
    index, value = np.full((len(a), max(k, 0)), -1, np.int64), np.full((len(a), max(k, 0)), np.nan)
    if k < 1:
        return Nearest(index, value)
    size = max(1, _CELLS // len(b))
    for start in range(0, len(a), size):
        cosine = a[start : start + size] @ b.T
        if others is None:
            cosine[np.arange(len(cosine)), np.arange(start, start + len(cosine))] = -np.inf
        best = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(cosine, best, 1)
        order = np.argsort(-found, axis=1, kind="stable")
        index[start : start + size] = np.take_along_axis(best, order, 1)
        value[start : start + size] = np.take_along_axis(found, order, 1)
    return Nearest(index, value)


def coactivation(codes: Codes, latents: NDArray[np.int64], k: int = NEAREST) -> Nearest:
    """For each of `latents` the `k` others (as positions in `latents`) that fire on the same texts, by the correlation
    of firing

        phi(i, j) = (N n_ij - n_i n_j) / sqrt(n_i (N - n_i) n_j (N - n_j))

    which is the same in both directions, and 0 for two independent latents. Only phi > 0 counts.
    """
    n, firing = codes.rows, _firing(codes, latents)
    alone = np.asarray(firing.sum(axis=0), dtype=np.float64).ravel()
    spread = np.sqrt(alone * (n - alone))
    index, value = np.full((len(latents), k), -1, np.int64), np.full((len(latents), k), np.nan)
    by_latent = firing.T.tocsr()
    size = max(1, _CELLS // max(len(latents), 1))
    starts = range(0, len(latents), size)
    for start, together in zip(
        starts, prefetched(lambda start: (by_latent[start : start + size] @ firing).tocsr(), starts), strict=True
    ):
        for i in range(together.shape[0]):
            pairs = slice(together.indptr[i], together.indptr[i + 1])
            me, others = start + i, together.indices[pairs]
            below = np.maximum(spread[me] * spread[others], 1e-30)
            phi = (n * together.data[pairs].astype(np.float64) - alone[me] * alone[others]) / below
            phi[others == me] = -1
            best = np.argpartition(-phi, k - 1)[:k] if len(phi) > k else np.arange(len(phi))
            best = best[np.lexsort((others[best], -phi[best]))]
            best = best[phi[best] > 1e-9]
            index[me, : len(best)], value[me, : len(best)] = others[best], phi[best]
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
