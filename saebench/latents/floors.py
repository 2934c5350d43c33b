"""Floors: the same score for directions that were not learned.

A floor is a matrix of directions and, for each, an activation rate taken from a latent of the SAE. Its code is the
projection of the centred embedding minus the threshold that gives the rate on training rows, if that is positive, else
0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Chunk, Codes, chunk_of, chunks, joined

Array = NDArray[np.float64]
_CELLS = 1 << 23


@dataclass(frozen=True, eq=False)
class Floor:
    """Directions (m, d_in) with a threshold each, on embeddings centred at `mean`."""

    directions: NDArray[np.float32]
    thresholds: NDArray[np.float32]
    mean: NDArray[np.float32]

    def codes(self, rows: NDArray[np.float32]) -> Codes:
        """Sparse codes of embeddings (n, d_in)."""
        found: list[Chunk] = []
        for start, stop in chunks(len(rows), max(1, _CELLS // max(len(self.directions), 1))):
            over = (rows[start:stop] - self.mean) @ self.directions.T - self.thresholds
            found.append(chunk_of(np.ascontiguousarray(np.maximum(over, 0), np.float32)))
        return joined(found, len(self.directions))


def floor(name: str, rows: NDArray[np.float32], rates: Array) -> Floor:
    """A floor of FLOORS, its thresholds from training rows (n, d_in): the i-th direction fires on a share rates[i] of
    them. If there are fewer directions than rates (at most 2 d_in for coordinates and components, each with both
    signs), evenly spaced rates are used."""
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    centred = rows - mean
    directions = FLOORS[name](centred, len(rates))
    rates = rates[np.arange(len(directions)) * len(rates) // max(len(directions), 1)]
    thresholds = np.empty(len(directions), np.float32)
    for start, stop in chunks(len(directions), max(1, _CELLS // max(len(rows), 1))):
        projected = np.sort(directions[start:stop] @ centred.T, axis=1)  # along memory: ten times as fast
        firing = np.clip(np.round(rates[start:stop] * len(rows)).astype(int), 1, len(rows) - 1)
        each = np.arange(stop - start)
        high, low = projected[each, len(rows) - firing], projected[each, len(rows) - firing - 1]
        thresholds[start:stop] = low + (high - low) / 2
    return Floor(directions, thresholds, mean)


def _random(centred: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_normal((count, centred.shape[1]))
    unit: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


def _raw(centred: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    return _both_signs(np.eye(centred.shape[1], dtype=np.float32), count)


def _pca(centred: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    wide = centred.astype(np.float64)
    components = np.linalg.eigh(wide.T @ wide).eigenvectors[:, ::-1].T
    return _both_signs(components.astype(np.float32), count)


def _both_signs(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The first rows, each followed by its opposite, `count` together at most."""
    return np.stack([rows, -rows], 1).reshape(-1, rows.shape[1])[:count]


FLOORS: dict[str, Callable[[NDArray[Any], int], NDArray[np.float32]]] = {"random": _random, "raw": _raw, "pca": _pca}
"""Name -> directions (at most `count`, d_in) for centred training rows: random ones, single coordinates of the
embedding, principal components (the strongest first)."""
