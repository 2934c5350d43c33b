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

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.threads import on_threads
from saebench.latents.words import Terms

MOST = 8
"""Keywords of a latent."""


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
    found = _scored(codes, terms, latents, allowed, 5 * most)
    return [_chosen(found, i, names, most) for i in range(len(latents))]


@dataclass(frozen=True)
class _Scored:
    """(latents, candidates) the terms of each latent that score highest, best first; -1 beyond those above 0."""

    term: NDArray[np.int64]
    score: NDArray[np.float64]
    share: NDArray[np.float64]
    silent: NDArray[np.float64]


def _chosen(scored: _Scored, latent: int, names: list[str], most: int) -> list[Keyword]:
    there = int((scored.term[latent] >= 0).sum())
    terms, scores = scored.term[latent, :there], scored.score[latent, :there]
    chosen: list[Keyword] = []
    for i in _best_first(scores, [names[t] for t in terms.tolist()]):
        name = names[terms[i]]
        if not any(_inside(name, other.term) for other in chosen):
            share, silent = scored.share[latent, i], scored.silent[latent, i]
            chosen.append(Keyword(name, float(scores[i]), float(share), float(silent)))
        if len(chosen) == most:
            break
    return chosen


def _best_first(scores: NDArray[np.float64], names: list[str]) -> Iterator[int]:
    """Yield places by score; among equals the longer term first, which holds the others. Only equals are compared by
    name, and only as far as the caller reads."""
    values, low = np.round(scores, 10).tolist(), 0
    while low < len(values):
        high = low + 1
        while high < len(values) and values[high] == values[low]:
            high += 1
        yield from [low] if high == low + 1 else sorted(range(low, high), key=lambda i: _longest_first(names[i]))
        low = high


def _longest_first(name: str) -> tuple[int, str]:
    return -len(name), name


def _inside(a: str, b: str) -> bool:
    """Whether one of two terms holds the other."""
    if " " in a or " " in b or (a.isascii() and b.isascii()):
        return f" {a} " in f" {b} " or f" {b} " in f" {a} "
    return a in b or b in a


def _scored(codes: Codes, terms: Terms, latents: Sequence[int], allowed: NDArray[np.int64], most: int) -> _Scored:
    """The best `most` of the allowed terms of each latent."""
    from saebench.latents.counting import score_terms

    matrix = terms.matrix[:, allowed]
    frequency = terms.frequency()[allowed]
    rarity = np.log1p(codes.rows / np.maximum(frequency, 1))
    activation = abs(codes.matrix()).astype(np.float64).tocsc()[:, list(latents)]
    weight = np.asarray(activation.sum(axis=0)).ravel()
    squares = np.asarray((activation * activation).sum(axis=0)).ravel()
    effective = weight**2 / np.maximum(squares, 1e-300)
    count = np.diff(activation.indptr).astype(np.float64)
    shape = (len(weight), most)
    found = _Scored(np.full(shape, -1, np.int64), np.zeros(shape), np.zeros(shape), np.zeros(shape))
    given = (activation.indptr, activation.indices, activation.data, matrix.indptr, matrix.indices, frequency, rarity,
             weight, count, effective, float(codes.rows))  # fmt: skip

    def work(part: slice) -> None:
        score_terms(part.start, part.stop, *given, found.term, found.score, found.share, found.silent)

    on_threads(work, len(weight))
    return found
