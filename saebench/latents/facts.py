"""How often, how strongly and on which texts of a part a latent fires."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.threads import on_threads

DECILES = 10
TOP = 5
"""Texts shown that fire a latent most."""


@dataclass(frozen=True, eq=False)
class Facts:
    """A number per latent (dict_size,)."""

    firing: NDArray[np.int64]
    """Texts on which it fires."""
    density: NDArray[np.float64]
    """`firing` over all texts."""
    mean: NDArray[np.float64]
    """Mean activation over the texts that fire it; NaN if it never fires."""
    largest: NDArray[np.float64]
    """The activation of largest magnitude; NaN if it never fires."""

    @property
    def live(self) -> NDArray[np.int64]:
        """Latents that fire on some text."""
        return np.flatnonzero(self.firing)


def facts_of(codes: Codes) -> Facts:
    """Compute all facts in one pass over the codes."""
    latents, values = codes.latents, np.asarray(codes.values, np.float64)
    firing = np.bincount(latents, minlength=codes.dict_size).astype(np.int64)
    total = np.bincount(latents, weights=values, minlength=codes.dict_size)
    high = np.full(codes.dict_size, -np.inf)
    low = np.full(codes.dict_size, np.inf)
    np.maximum.at(high, latents, values)
    np.minimum.at(low, latents, values)
    none = firing == 0
    largest = np.where(np.abs(low) > np.abs(high), low, high)
    mean = total / np.maximum(firing, 1)
    mean[none] = largest[none] = np.nan
    return Facts(firing, firing / max(codes.rows, 1), mean, largest)


@dataclass(frozen=True)
class Example:
    """A text on which a latent fires."""

    row: int
    """Its position in the part."""
    activation: float
    decile: int
    """1: among the strongest tenth of the firing texts, 10: among the weakest; 0 if fewer than ten fire."""


class ByLatent:
    """The pairs of some codes latent by latent, the greatest magnitude first; the lower row first among equals."""

    def __init__(self, codes: Codes) -> None:
        from saebench.latents.counting import order_by_magnitude

        by_latent: Any = codes.matrix().tocsc()  # inside a latent by row, and the sort is stable
        order, magnitude = np.empty(len(by_latent.data), np.int64), np.abs(by_latent.data)
        starts = by_latent.indptr
        on_threads(lambda some: order_by_magnitude(some.start, some.stop, starts, magnitude, order), codes.dict_size)
        self._starts = starts
        self._rows, self._values = by_latent.indices[order], by_latent.data[order]

    def firing(self, latent: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows, activations) of the texts that fire it, the strongest first."""
        pairs = slice(int(self._starts[latent]), int(self._starts[latent + 1]))
        return self._rows[pairs].astype(np.int64), self._values[pairs]

    def top(self, latent: int, count: int = TOP) -> list[Example]:
        """The texts that fire it most."""
        pairs = slice(int(self._starts[latent]), int(self._starts[latent + 1]))
        rows, values = self._rows[pairs], self._values[pairs]
        deciles = [number for number, tenth in enumerate(_tenths(len(rows)), 1) for _ in tenth[:count]][:count]
        if len(rows) < DECILES:
            deciles = [0] * min(len(rows), count)
        return [Example(*pair) for pair in zip(rows[:count].tolist(), values[:count].tolist(), deciles, strict=True)]

    def deciles(self, latent: int, each: int = 1) -> list[list[Example]]:
        """`each` texts from the middle of every tenth of the firing texts, the strongest tenth first; one list per text
        if fewer than ten texts fire."""
        start, stop = int(self._starts[latent]), int(self._starts[latent + 1])
        tenths, found = _tenths(stop - start), []
        for number, group in enumerate(tenths, 1):
            middle = max(0, (len(group) - each) // 2)
            some = [start + i for i in group[middle : middle + each]]
            decile = number if len(tenths) == DECILES else 0
            found.append([Example(int(self._rows[i]), float(self._values[i]), decile) for i in some])
        return found


def decile_of(firing: int) -> NDArray[np.int64]:
    """(firing,) the tenth of each position in a ranking, 1 to 10; zeros if there are fewer than ten."""
    if firing < DECILES:
        return np.zeros(firing, np.int64)
    return np.repeat(np.arange(1, DECILES + 1), [len(tenth) for tenth in _tenths(firing)])


@lru_cache(maxsize=1024)  # many latents fire on as many texts
def _tenths(firing: int) -> tuple[range, ...]:
    """Return the positions of a ranking in ten consecutive groups, the first ones larger by one if they cannot be
    equal; a group per position if there are fewer than ten."""
    if not firing:
        return ()
    size, larger = divmod(firing, min(DECILES, firing))
    bounds = [size * i + min(i, larger) for i in range(min(DECILES, firing) + 1)]
    return tuple(range(low, high) for low, high in pairwise(bounds))


def sample_by_density(facts: Facts, count: int, fewest: int = 1) -> Sequence[int]:
    """`count` latents that fire on at least `fewest` texts, evenly spaced in the order of density: the same number for
    every SAE, with rare and frequent ones. All of them if there are not more."""
    usable = np.flatnonzero(facts.firing >= fewest)
    order = usable[np.lexsort((usable, facts.firing[usable]))]
    if len(order) <= count:
        return sorted(order.tolist())
    places = np.floor((np.arange(count) + 0.5) * len(order) / count).astype(np.int64)
    return sorted(order[places].tolist())
