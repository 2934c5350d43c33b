"""Keywords of latents: the terms of the texts that fire one, against the texts that do not.

c-TF-IDF with two classes per latent, firing and silent. For term t of latent l, on N texts of which df contain t:

    score = (share of l's activation on texts that hold t - s - 2 sqrt(s (1 - s) / n)) * ln(1 + N / df)

s is the share of the silent texts that hold t. The first share weighs firing texts by their activation a, as if they
were n = (sum a)^2 / sum a^2 texts; the root is its standard error if the latent were independent of t. A stop word is
as frequent in both kinds of texts, and scores below 0 in any language.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.threads import prefetched
from saebench.latents.words import Terms

MOST = 8
"""Keywords of a latent."""
_LATENTS = 1024
"""Latents whose terms are counted together."""


@dataclass(frozen=True)
class Keyword:
    """A term of a latent."""

    term: str
    score: float
    share: float
    """Share of the latent's activation on texts that hold the term."""
    silent: float
    """Share of the silent texts that hold it."""


def keywords(
    codes: Codes, terms: Terms, latents: Sequence[int], most: int = MOST, words: int = 9
) -> list[list[Keyword]]:
    """The best terms of each of these latents, best first; of at most `words` words. A term that is part of an already
    chosen one, or contains it, is skipped."""
    allowed = np.flatnonzero(terms.words <= words)
    names = [terms.names[i] for i in allowed]
    return [_chosen(scored, names, most) for scored in _scored(codes, terms, latents, allowed)]


@dataclass(frozen=True)
class _Scored:
    """The terms on texts that fire one latent; no other term can score above 0."""

    term: NDArray[np.int64]
    score: NDArray[np.float64]
    share: NDArray[np.float64]
    silent: NDArray[np.float64]


def _chosen(scored: _Scored, names: list[str], most: int) -> list[Keyword]:
    candidates = min(5 * most, len(scored.score))
    if not candidates:
        return []
    first = np.argpartition(-scored.score, candidates - 1)[:candidates]
    chosen: list[Keyword] = []
    for i in _best_first(first[scored.score[first] > 0], scored, names):
        name = names[scored.term[i]]
        if not any(_inside(name, other.term) for other in chosen):
            chosen.append(Keyword(name, float(scored.score[i]), float(scored.share[i]), float(scored.silent[i])))
        if len(chosen) == most:
            break
    return chosen


def _best_first(first: NDArray[np.int64], scored: _Scored, names: list[str]) -> Iterator[int]:
    """Yield places by score; among equals the longer term first, which holds the others. Only equals are compared by
    name, and only as far as the caller reads."""
    rounded = np.round(scored.score[first], 10)
    order = np.argsort(-rounded, kind="stable")
    places, values, low = first[order].tolist(), rounded[order].tolist(), 0
    while low < len(places):
        high = low + 1
        while high < len(places) and values[high] == values[low]:
            high += 1
        equal = places[low:high]
        yield from equal if len(equal) == 1 else sorted(equal, key=lambda i: _longest_first(names[scored.term[i]]))
        low = high


def _longest_first(name: str) -> tuple[int, str]:
    return -len(name), name


def _inside(a: str, b: str) -> bool:
    """Whether one of two terms holds the other."""
    if " " in a or " " in b or (a.isascii() and b.isascii()):
        return f" {a} " in f" {b} " or f" {b} " in f" {a} "
    return a in b or b in a


def _scored(codes: Codes, terms: Terms, latents: Sequence[int], allowed: NDArray[np.int64]) -> Iterator[_Scored]:
    """The allowed terms of each latent."""
    matrix = terms.matrix[:, allowed]
    frequency = terms.frequency()[allowed]
    rarity = np.log1p(codes.rows / np.maximum(frequency, 1))
    both = abs(codes.matrix()).astype(np.complex128).tocsc()
    both.data += 1j  # the activation, and beside it a 1: one product gives both sums
    parts = [list(latents[start : start + _LATENTS]) for start in range(0, len(latents), _LATENTS)]

    def counted(part: list[int]) -> tuple[Any, Any]:
        some = both[:, part]
        return some, (some.T @ matrix).tocsr()

    for some, product in prefetched(counted, parts):
        sums = np.asarray(some.sum(axis=0)).ravel()
        weights, counts = sums.real, sums.imag
        square = some.copy()
        square.data = square.data.real**2
        effective = weights**2 / np.maximum(np.asarray(square.sum(axis=0)).ravel(), 1e-300)
        for i in range(len(weights)):
            pairs = slice(product.indptr[i], product.indptr[i + 1])
            term = product.indices[pairs].astype(np.int64)
            share = product.data[pairs].real / max(weights[i], 1e-30)
            silent = (frequency[term] - product.data[pairs].imag) / max(codes.rows - counts[i], 1)
            error = np.sqrt(silent * (1 - silent) / max(effective[i], 1e-30))
            yield _Scored(term, (share - silent - 2 * error) * rarity[term], share, silent)
