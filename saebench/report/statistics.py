"""Statistics on arrays: intervals over seeds and over texts, Holm's correction, the sign test, number of seeds needed.

Everything works on log-ratios of FVU, log(FVU_a / FVU_b), because FVU is a scale and arms differ by factors. Strata
are fixed conditions, seeds are the draws: a seed fixes initialisation and data order, and is shared by all strata
and both arms, so that one seed's values in several strata are not independent and only seeds count as observations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
LEVEL = 0.95
MAX_SEEDS = 1000
"""Largest number of seeds that `seeds_needed` tries."""
_SAME = 1e-12
"""Standard errors (in log-ratio) below this are rounding: the seeds did not differ."""


@dataclass(frozen=True)
class Interval:
    """Estimate with its interval; arrays of the leading shape of the input. NaN if the seeds do not give one."""

    mean: Array
    low: Array
    high: Array
    p: Array
    """Two-sided p of "the mean is 0"."""
    sd: Array
    """Standard deviation of one seed's mean: the interval's half-width is t * sd / sqrt(n)."""
    n: Array
    """Number of seeds in the interval."""


def _interval(mean: Array, error: Array, n: Array, level: float) -> Interval:
    """t interval with n - 1 degrees of freedom; no interval from one seed, or from seeds that do not differ."""
    known = (n >= 2) & (error > _SAME)
    df = np.where(known, n - 1, 1)
    error = np.where(known, error, np.nan)
    half = stats.t.ppf(0.5 + level / 2, df) * error
    p = 2 * stats.t.sf(np.abs(mean / error), df)
    return Interval(mean, mean - half, mean + half, p, error * np.sqrt(n), n)


def over_seeds(values: Any, level: float = LEVEL) -> Interval:
    """t interval of the mean over the last axis (seeds); NaN is a missing seed."""
    values = np.asarray(values, dtype=float)
    there = ~np.isnan(values)
    n = there.sum(-1)
    mean = np.where(n > 0, np.where(there, values, 0).sum(-1) / np.maximum(n, 1), np.nan)
    square = np.where(there, (values - mean[..., None]) ** 2, 0).sum(-1)
    return _interval(mean, np.sqrt(square / np.maximum(n - 1, 1) / np.maximum(n, 1)), n, level)


def over_strata(values: Any, level: float = LEVEL) -> Interval:
    """Mean over strata of the mean over seeds, its error from the spread of whole seeds.

    `values` is (..., seeds, strata); NaN is a missing cell. Strata have equal weights. A stratum with fewer than two
    seeds does not count, unless none has two: then the estimate is over all of them and has no interval. The error is
    the jackknife over seeds: without missing cells it is exactly the t interval over each seed's mean over strata; with
    cells missing it still compares every stratum with itself only.
    """
    values = np.asarray(values, dtype=float)
    there = ~np.isnan(values)
    n = there.sum(-2)
    used = np.where((n >= 2).any(-1)[..., None], n >= 2, n >= 1)
    strata = np.maximum(used.sum(-1), 1)
    total = np.where(there, values, 0).sum(-2)

    def pooled(total: Array, n: Array) -> Array:
        return np.asarray(np.where(used, total / np.maximum(n, 1), 0).sum(-1) / strata)

    seeds = (there & used[..., None, :]).any(-1)
    count = seeds.sum(-1)
    without = np.stack(
        [pooled(total - np.where(there, values, 0)[..., s, :], n - there[..., s, :]) for s in range(values.shape[-2])],
        axis=-1,
    )
    centre = np.where(seeds, without, 0).sum(-1) / np.maximum(count, 1)
    square = np.where(seeds, (without - centre[..., None]) ** 2, 0).sum(-1)
    error = np.sqrt(square * np.maximum(count - 1, 0) / np.maximum(count, 1))
    mean = np.where(used.any(-1), pooled(total, n), np.nan)
    return _interval(mean, np.where((n >= 2).any(-1), error, 0), count, level)


def p_of(difference: float, half_width: float, n: int, level: float = LEVEL) -> float:
    """Two-sided p of a difference above 0 whose t interval from `n` seeds has this half-width; 1 for one below 0."""
    if not (math.isfinite(difference) and math.isfinite(half_width)) or n < 2:
        return 1.0 if difference == -math.inf else math.nan
    error = half_width / stats.t.ppf(0.5 + level / 2, n - 1)
    return float(2 * stats.t.sf(max(difference, 0.0) / error, n - 1))


def holm(p: Any) -> Array:
    """Holm's step-down adjusted p values over the last axis; NaN stays NaN and does not count as a test."""
    p = np.asarray(p, dtype=np.float64)
    if not p.size:
        return np.empty_like(p)
    order = np.argsort(p, axis=-1)  # NaN sorts last
    ranked = np.take_along_axis(p, order, -1)
    tests = (~np.isnan(p)).sum(-1, keepdims=True)
    stepped = ranked * np.maximum(tests - np.arange(p.shape[-1]), 1)
    adjusted = np.minimum(np.maximum.accumulate(np.where(np.isnan(stepped), -np.inf, stepped), axis=-1), 1)
    result: Array = np.empty_like(p)
    np.put_along_axis(result, order, np.where(np.isnan(ranked), np.nan, adjusted), -1)
    return result


def sign_test(values: Any) -> tuple[int, int, float]:
    """(strata below 0, strata that are not 0, two-sided binomial p) of one value per stratum."""
    values = np.asarray(values, dtype=float)
    below, counted = int((values < 0).sum()), int(((values < 0) | (values > 0)).sum())
    return below, counted, float(stats.binomtest(below, counted).pvalue) if counted else math.nan


def seeds_needed(difference: float, sd: float, power: float = 0.8, level: float = LEVEL) -> int | None:
    """Smallest number of seeds whose interval excludes 0 with probability `power`, if the true mean is `difference`
    and one seed's standard deviation is `sd`. None: no difference, no spread known, or more than MAX_SEEDS."""
    if not (math.isfinite(difference) and math.isfinite(sd) and difference and sd > 0):
        return None
    few, many = 1, MAX_SEEDS + 1
    while many - few > 1:  # power grows with the number of seeds
        middle = (few + many) // 2
        few, many = (few, middle) if _power(abs(difference) / sd, middle, level) >= power else (middle, many)
    return many if many <= MAX_SEEDS else None


def _power(effect: float, n: int, level: float) -> float:
    """Chance that a t interval from n draws of mean `effect` and standard deviation 1 lies above 0."""
    shift = effect * math.sqrt(n)
    bound = stats.t.ppf(0.5 + level / 2, n - 1)
    return 1.0 if shift > bound + 30 else float(stats.nct.sf(bound, n - 1, shift))


@dataclass(frozen=True)
class TextInterval:
    """Bootstrap over test texts; arrays of the leading shape of `weights`."""

    mean: Array
    low: Array
    high: Array
    texts: int


def over_texts(
    errors: Any,
    weights: Any,
    *,
    log: bool = True,
    draws: int = 1000,
    groups: int = 2000,
    level: float = LEVEL,
    seed: int = 0,
) -> TextInterval:
    """Percentile bootstrap, over the texts n, of sum_t weights[..., t] * log(sum_n errors[t, n]); of the means over
    texts instead of the logarithms of sums without `log`.

    `errors` (trials, texts) holds squared errors of the same test part in the same order, so that one draw of texts
    serves all trials and all rows of `weights` (..., trials): differences are paired. Weights that add up to 0, as in a
    log-ratio, cancel the variance in FVU's denominator. More than `groups` texts are first put at random into that many
    groups, and groups are drawn: the same spread for a fraction of the work (remaining texts are not drawn).
    """
    errors, weights = np.asarray(errors), np.asarray(weights, dtype=np.float64)
    rng = np.random.default_rng(seed)
    texts = errors.shape[1]
    size = max(texts // groups, 1)
    dealt = rng.permutation(texts)[: texts // size * size].reshape(-1, size)
    sums = np.stack([row[dealt].sum(1, dtype=np.float64) for row in errors])
    counts = rng.multinomial(len(dealt), np.full(len(dealt), 1 / len(dealt)), size=draws)
    totals = counts @ sums.T
    values = np.log(totals) if log else totals / (dealt.size)
    drawn = values @ np.moveaxis(weights, -1, 0)
    low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    whole = errors.sum(1, dtype=np.float64)
    return TextInterval(weights @ (np.log(whole) if log else whole / texts), low, high, texts)
