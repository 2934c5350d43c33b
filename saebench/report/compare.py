"""Arms against each other at equal L0: paired log-ratios of FVU over (sparsity, width, seed), and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saebench.report import statistics
from saebench.report.points import arms, usable

if TYPE_CHECKING:
    from pandas import DataFrame

FVU, L0 = "eval/fvu", "eval/l0"
TOLERANCE = 0.05
"""Relative difference of measured L0 up to which two strata are compared as they are."""
Run = tuple[float, float, str]
"""log FVU, log L0, run id."""
Cells = dict[float, dict[tuple[str, float], dict[int, Run]]]
"""width -> (name, value of the sparsity parameter) -> seed -> run."""


@dataclass(frozen=True)
class Pair:
    """One seed in one stratum: log(FVU_a / FVU_b), log(L0_a / L0_b) and the runs it is a weighted sum of."""

    log_ratio: float
    l0_gap: float
    weights: dict[str, float]


@dataclass(frozen=True)
class Stratum:
    """One sparsity and width, both arms."""

    level_name: str
    level: float
    dict_size: float
    base: str
    """The arm whose stratum this is."""
    counterpart: tuple[str, float] | None
    """Name and value of the other arm's sparsity parameter; None where it was interpolated."""
    l0: float
    """L0 at which the arms are compared: the mean over seeds of the arm that is not interpolated."""
    pairs: dict[int, Pair]
    """By seed."""
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    text_low: float = math.nan
    text_high: float = math.nan

    @property
    def interpolated(self) -> bool:
        """Was the other arm's FVU interpolated along log L0?"""
        return self.counterpart is None

    @property
    def l0_gap(self) -> float:
        """Mean log(L0_a / L0_b); 0 where interpolated."""
        return float(np.mean([pair.l0_gap for pair in self.pairs.values()]))


@dataclass(frozen=True)
class Comparison:
    """All strata of two arms, pooled. Log-ratios are log(FVU_a / FVU_b), and not above 0."""

    a: str
    b: str
    group: str
    strata: tuple[Stratum, ...]
    left_out: tuple[str, ...] = ()
    """Strata that could not be compared, and why."""
    seeds: int = 0
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_pairs: float = math.nan
    """p after Holm's correction over all pairs of arms in the report."""
    sd: float = math.nan
    """Standard deviation, over seeds, of a seed's mean over strata."""
    text_low: float = math.nan
    text_high: float = math.nan
    texts: int = 0
    lower: int = 0
    """Strata in which `a` has the lower FVU."""
    sign_p: float = math.nan
    needed: int | None = field(default=None)
    """Seeds that would decide with 80% power, were this the true difference."""

    @property
    def interpolated(self) -> int:
        return sum(s.interpolated for s in self.strata)

    @property
    def decided(self) -> bool:
        """The interval over seeds leaves 0 out, and so does the one over texts where there is one."""
        return self.low * self.high > 0 and not self.text_low * self.text_high < 0


def compare(frame: DataFrame, best: DataFrame) -> list[Comparison]:
    """Every pair of arms that share data and budget; `best` as `points.chosen` gives it."""
    results: list[Comparison] = []
    for group, trials in frame.groupby("group", sort=False):
        there = best[(best["group"] == group) & usable(best, FVU) & usable(best, L0)]
        found = {arm: _cells(there[there["arm"] == arm]) for arm in arms(trials)}
        results += [_compare(a, b, str(group), found[a], found[b]) for a, b in combinations(found, 2)]
    adjusted = statistics.holm([c.p for c in results])
    return [replace(c, p_pairs=float(p)) for c, p in zip(results, adjusted, strict=True)]


def _cells(trials: DataFrame) -> Cells:
    cells: Cells = {}
    columns = ["dict_size", "level_name", "level", "seed", FVU, L0, "run_id"]
    for width, name, level, seed, fvu, l0, run in trials[columns].itertuples(index=False, name=None):
        if fvu > 0 and l0 > 0 and level == level and width == width:
            runs = cells.setdefault(float(width), {}).setdefault((name, level), {})
            runs[int(seed)] = (math.log(fvu), math.log(l0), run)
    return cells


def _compare(a: str, b: str, group: str, of_a: Cells, of_b: Cells) -> Comparison:
    """Strata are those of the arm of which more can be matched. The arm with the lower FVU comes first."""
    of_a_strata, of_b_strata = _match(a, b, of_a, of_b), _match(b, a, of_b, of_a)
    base, other = (a, b) if len(of_a_strata[0]) >= len(of_b_strata[0]) else (b, a)
    strata, left_out = of_a_strata if base == a else of_b_strata
    pooled = _pooled(Comparison(base, other, group, tuple(strata), tuple(left_out)))
    if pooled.mean > 0 or (not strata and base != a):
        pooled = _pooled(replace(pooled, a=other, b=base, strata=tuple(_negated(s) for s in strata)))
    return pooled


def _match(base: str, other: str, of_base: Cells, of_other: Cells) -> tuple[list[Stratum], list[str]]:
    """Strata of `base` with log(FVU_base / FVU_other), and those that have no counterpart."""
    strata, left_out = [], []
    for width, levels in sorted(of_base.items()):
        if width not in of_other:
            left_out.append(f"n={width:g}: {other} has no complete trial of this width")
            continue
        for (name, level), runs in sorted(levels.items(), key=lambda item: item[0][1]):
            l0 = float(np.mean([run[1] for run in runs.values()]))
            near = _nearest((name, level), l0, of_other[width])
            levels_of_other = of_other[width]
            pairs = _direct(runs, levels_of_other[near]) if near else _interpolated(runs, levels_of_other)
            place = f"{name}={level:g} n={width:g}"
            if pairs:
                strata.append(Stratum(name, level, width, base, near, math.exp(l0), pairs))
            elif near is not None:
                left_out.append(f"{place}: no seed that both have completed")
            else:
                left_out.append(f"{place}: {base} has L0 {math.exp(l0):.3g}, {other} has none on both sides of it")
    return strata, left_out


def _nearest(
    key: tuple[str, float], l0: float, levels: dict[tuple[str, float], dict[int, Run]]
) -> tuple[str, float] | None:
    """The other arm's stratum whose L0 is within TOLERANCE, the one of the same k or target first."""
    gap = {k: abs(float(np.mean([run[1] for run in runs.values()])) - l0) for k, runs in levels.items()}
    close = [k for k in gap if gap[k] <= math.log1p(TOLERANCE)]
    return min(close, key=lambda k: (k[1] != key[1], gap[k])) if close else None


def _direct(base: dict[int, Run], other: dict[int, Run]) -> dict[int, Pair]:
    return {
        seed: Pair(fvu - other[seed][0], l0 - other[seed][1], {run: 1.0, other[seed][2]: -1.0})
        for seed, (fvu, l0, run) in sorted(base.items())
        if seed in other
    }


def _interpolated(base: dict[int, Run], levels: dict[tuple[str, float], dict[int, Run]]) -> dict[int, Pair]:
    """Per seed, the other arm's log FVU on the straight line along log L0 between its two neighbours; a seed without
    neighbours on both sides is left out: nothing is extrapolated."""
    pairs = {}
    for seed, (fvu, l0, run) in sorted(base.items()):
        line = sorted((runs[seed][1], runs[seed][0], runs[seed][2]) for runs in levels.values() if seed in runs)
        below, above = [p for p in line if p[0] <= l0], [p for p in line if p[0] >= l0]
        if below and above:
            (x0, y0, run0), (x1, y1, run1) = below[-1], above[0]
            share = (l0 - x0) / (x1 - x0) if x1 > x0 else 0.0
            weights = {run: 1.0, run0: -(1 - share)}
            weights[run1] = weights.get(run1, 0.0) - share
            pairs[seed] = Pair(fvu - (y0 + share * (y1 - y0)), 0.0, weights)
    return pairs


def _negated(stratum: Stratum) -> Stratum:
    pairs = {
        seed: Pair(-pair.log_ratio, -pair.l0_gap, {run: -weight for run, weight in pair.weights.items()})
        for seed, pair in stratum.pairs.items()
    }
    return replace(stratum, pairs=pairs)


def _pooled(comparison: Comparison) -> Comparison:
    if not comparison.strata:
        return comparison
    seeds = sorted({seed for s in comparison.strata for seed in s.pairs})
    values = np.array(
        [[s.pairs[seed].log_ratio if seed in s.pairs else math.nan for s in comparison.strata] for seed in seeds]
    )
    each, all_ = statistics.over_seeds(values.T), statistics.over_strata(values)
    adjusted = statistics.holm(each.p)
    strata = tuple(
        replace(s, mean=float(m), low=float(lo), high=float(hi), p=float(p), p_holm=float(ph))
        for s, m, lo, hi, p, ph in zip(comparison.strata, each.mean, each.low, each.high, each.p, adjusted, strict=True)
    )
    lower, _, sign_p = statistics.sign_test(each.mean)
    pooled = replace(comparison, strata=strata, seeds=int(all_.n), mean=float(all_.mean), low=float(all_.low),
                     high=float(all_.high), p=float(all_.p), sd=float(all_.sd), lower=lower, sign_p=sign_p)  # fmt: skip
    if pooled.decided:
        return pooled
    return replace(pooled, needed=statistics.seeds_needed(pooled.mean, pooled.sd))


# --- texts -----------------------------------------------------------------------------------------------------------


def runs_of(comparisons: list[Comparison]) -> set[str]:
    """Run ids whose per-example errors `with_texts` wants."""
    return {run for c in comparisons for s in c.strata for pair in s.pairs.values() for run in pair.weights}


def with_texts(comparison: Comparison, errors: dict[str, NDArray[Any]]) -> Comparison:
    """The same with intervals from a bootstrap over hold-out texts: the noise of the data, seeds held fixed.

    `errors` maps run ids to squared errors per hold-out example. Pairs of which a run is missing are left out; nothing
    is computed where hold-outs differ in length.
    """
    kept = [[p for p in s.pairs.values() if all(run in errors for run in p.weights)] for s in comparison.strata]
    runs = sorted({run for pairs in kept for pair in pairs for run in pair.weights})
    if not runs or len({len(errors[run]) for run in runs}) > 1 or any(errors[run].sum() <= 0 for run in runs):
        return comparison
    rows = list(_weights(kept, runs))
    filled = [row for row in rows if row is not None]
    several = [row for row, s in zip(rows, comparison.strata, strict=True) if row is not None and len(s.pairs) > 1]
    pooled = np.mean(several or filled, axis=0)  # of the strata that the interval over seeds is of
    interval = statistics.over_texts(np.stack([errors[run] for run in runs]), [pooled, *filled])
    bounds = iter(zip(interval.low[1:], interval.high[1:], strict=True))
    strata = []
    for stratum, row in zip(comparison.strata, rows, strict=True):
        low, high = next(bounds) if row is not None else (math.nan, math.nan)
        strata.append(replace(stratum, text_low=float(low), text_high=float(high)))
    texted = replace(comparison, strata=tuple(strata), text_low=float(interval.low[0]),
                     text_high=float(interval.high[0]), texts=interval.texts)  # fmt: skip
    return replace(texted, needed=None if texted.decided else statistics.seeds_needed(texted.mean, texted.sd))


def _weights(kept: list[list[Pair]], runs: list[str]) -> Iterator[NDArray[Any] | None]:
    """Per stratum, the weight of every run in the mean over its seeds; None for a stratum without pairs."""
    place = {run: i for i, run in enumerate(runs)}
    for pairs in kept:
        if not pairs:
            yield None
            continue
        row = np.zeros(len(runs))
        for pair in pairs:
            for run, weight in pair.weights.items():
                row[place[run]] += weight / len(pairs)
        yield row
