"""Counts over pairs of sparse codes, compiled by numba: which terms the texts of a latent hold, and which other latents
fire on them. A latent at a time, with a row of counters that stays in the cache; no product of matrices is ever kept.

Sums run over texts in ascending order, so that the same input gives the same bits with any number of threads.
"""

# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator, no-any-return, no-untyped-call, misc"
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit


def _compiled(function: Callable[..., Any]) -> Any:
    """Apply numba.njit with the GIL released. If no cache folder is writable, every process compiles again."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:
        return njit(nogil=True, error_model="numpy")(function)


@_compiled
def _insert(score, which, value, new):
    """Put a value into a descending row, behind equal ones; the last one is lost."""
    i = len(score) - 1
    while i > 0 and score[i - 1] < value:
        score[i], which[i] = score[i - 1], which[i - 1]
        i -= 1
    score[i], which[i] = value, new


@_compiled
def order_by_magnitude(low, high, starts, magnitude, order):
    """Fill the places of latents `low` to `high` with their pairs, the greatest magnitude first, equals as they
    stand."""
    for latent in range(low, high):
        start, stop = starts[latent], starts[latent + 1]
        order[start:stop] = start + np.argsort(-magnitude[start:stop], kind="mergesort")


@_compiled
def score_terms(
    low, high, starts, texts, values, term_starts, terms, frequency, rarity, weight, count, effective, rows,
    term, score, share, silent,
):  # fmt: skip
    """Fill rows `low` to `high` of (latents, most) arrays with the best terms of each latent, best first; -1 where no
    further term scores above 0. `starts`, `texts`, `values` are the activations latent by latent, `term_starts`,
    `terms` the terms text by text; see keywords.py for the formula."""
    size, most = len(frequency), term.shape[1]
    sums, hits, seen = np.zeros(size), np.zeros(size), np.empty(size, np.int64)
    for latent in range(low, high):
        found = 0
        for pair in range(starts[latent], starts[latent + 1]):
            for place in range(term_starts[texts[pair]], term_starts[texts[pair] + 1]):
                t = terms[place]
                if hits[t] == 0:
                    seen[found] = t
                    found += 1
                sums[t] += values[pair]
                hits[t] += 1
        others = max(rows - count[latent], 1.0)
        for n in range(found):
            t = seen[n]
            inside, outside = sums[t] / max(weight[latent], 1e-30), (frequency[t] - hits[t]) / others
            error = math.sqrt(outside * (1 - outside) / max(effective[latent], 1e-30))
            value = (inside - outside - 2 * error) * rarity[t]
            if value > score[latent, most - 1]:
                _insert(score[latent], term[latent], value, t)
        for n in range(most):
            t = term[latent, n]
            if t >= 0:
                share[latent, n] = sums[t] / max(weight[latent], 1e-30)
                silent[latent, n] = (frequency[t] - hits[t]) / others
        for n in range(found):
            sums[seen[n]] = 0
            hits[seen[n]] = 0


@_compiled
def score_partners(low, high, starts, texts, text_starts, latents, alone, spread, rows, index, value):
    """Fill rows `low` to `high` of (latents, k) arrays with the latents that fire with each one, by phi, the lower
    number first among equals. `latents` are those of each text, `starts` and `texts` the texts of each latent."""
    size, k = len(alone), index.shape[1]
    hits, seen = np.zeros(size, np.int64), np.empty(size, np.int64)
    for me in range(low, high):
        found = 0
        for pair in range(starts[me], starts[me + 1]):
            for place in range(text_starts[texts[pair]], text_starts[texts[pair] + 1]):
                other = latents[place]
                if hits[other] == 0:
                    seen[found] = other
                    found += 1
                hits[other] += 1
        for other in np.sort(seen[:found]):
            below = max(spread[me] * spread[other], 1e-30)
            phi = (rows * float(hits[other]) - alone[me] * alone[other]) / below
            if other != me and phi > 1e-9 and phi > value[me, k - 1]:
                _insert(value[me], index[me], phi, other)
        for n in range(found):
            hits[seen[n]] = 0
