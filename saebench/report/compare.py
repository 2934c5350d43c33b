"""Arms against each other at equal L0: paired log-ratios of FVU over (sparsity, width, seed), and what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from saebench.metrics import METRICS, Metric
from saebench.report import statistics
from saebench.report.points import FINAL, arms, usable
from saebench.report.search_error import Cell, CellSearch, loss_of

if TYPE_CHECKING:
    from pandas import DataFrame

FVU, L0 = f"{FINAL}fvu", f"{FINAL}l0"
LEVEL = 0.05
"""Of a test, after Holm's correction."""
MARGIN = 0.005
"""Default of `eval.margin`: 0.5% of a metric that is compared by its ratio, 0.005 of a score."""
SAME = 1e-9
"""Differences below this are the rounding of equal numbers."""
Outcome = Literal["better", "worse", "equal", "small", "same", "undecided", "so far", "not compared"]
"""small: certain, but within the margin. same: equal to the last digit."""
TOLERANCE = 0.05
"""Relative difference of measured L0 up to which two strata are compared as they are."""
Run = tuple[float, float, str]
"""log FVU, log L0, run id."""
Cells = dict[float, dict[tuple[str, float], dict[int, Run]]]
"""width -> (name, value of the sparsity parameter) -> seed -> run."""


@dataclass(frozen=True)
class Pair:
    """One seed in one stratum: the difference of losses a - b (of FVU: log(FVU_a / FVU_b)), log(L0_a / L0_b), and the
    runs it is a weighted sum of."""

    difference: float
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
    search: float = 0.0
    """By how much the search alone may have parted the arms: the interval is wider by this on both sides."""
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
    """All strata of two arms in one metric, pooled. Differences are losses of a minus losses of b (see `loss_of`);
    those of FVU are log(FVU_a / FVU_b), and not above 0."""

    a: str
    b: str
    group: str
    strata: tuple[Stratum, ...]
    metric: str = "fvu"
    unfinished: str = ""
    """How far the sweep is, if it has not ended: then nothing is decided."""
    edge: tuple[str, ...] = ()
    """Searched ranges at whose end a best point lies, with their arms."""
    points: int | None = None
    """Points that would locate the optimum of an arm that had too few."""
    search: float = 0.0
    """Mean of the strata's search errors; included in `low`, `high` and `p`."""
    margin: float = MARGIN
    """Differences below this do not matter."""
    left_out: tuple[str, ...] = ()
    """Strata that could not be compared, and why."""
    seeds: int = 0
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_pairs: float = math.nan
    """p after Holm's correction over the family: all pairs of arms, in the primary metrics or in all the others."""
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
    def excludes_zero(self) -> bool:
        """Do the interval over seeds and search, and the one over texts where there is one, leave 0 out?"""
        return self.low * self.high > 0 and not self.text_low * self.text_high < 0

    @property
    def same(self) -> bool:
        """Are the arms equal to the last digit?"""
        return bool(self.strata) and all(abs(p.difference) < SAME for s in self.strata for p in s.pairs.values())

    @property
    def outcome(self) -> Outcome:
        """What the data say."""
        if self.unfinished:
            return "so far"
        if not self.strata:
            return "not compared"
        if self.same:
            return "same"
        if self.edge or not math.isfinite(self.search) or not math.isfinite(self.low):
            return "undecided"
        if -self.margin < self.low and self.high < self.margin:
            return "small" if self.excludes_zero and self.p_pairs <= LEVEL else "equal"
        if self.excludes_zero and self.p_pairs <= LEVEL:
            return "better" if self.mean < 0 else "worse"
        return "undecided"

    @property
    def decided(self) -> bool:
        """Is one arm better, for certain and by enough to matter?"""
        return self.outcome in ("better", "worse")


def compare(
    frame: DataFrame, best: DataFrame, searches: Mapping[Cell, CellSearch] | None = None, unfinished: str = ""
) -> list[Comparison]:
    """Compare FVU of every pair of arms that share data and budget; `best` as `points.chosen` gives it, `searches` as
    `search_error.cell_searches` does."""
    results: list[Comparison] = []
    for group, trials in frame.groupby("group", sort=False):
        there = best[(best["group"] == group) & usable(best, FVU) & usable(best, L0)]
        found = {arm: _cells(there[there["arm"] == arm]) for arm in arms(trials)}
        results += [_compare(a, b, str(group), found[a], found[b]) for a, b in combinations(found, 2)]
    results = [_searched(replace(c, unfinished=unfinished), searches or {}) for c in results]
    adjusted = statistics.holm([c.p for c in results])
    return [replace(c, p_pairs=float(p)) for c, p in zip(results, adjusted, strict=True)]


def in_metric(
    c: Comparison, metric: Metric, frame: DataFrame, searches: Mapping[Cell, CellSearch] | None = None
) -> Comparison | None:
    """Return the same pairs of runs compared in another metric; None if an arm has it in none of them."""
    key = f"{FINAL}{metric.name}"
    if key not in frame.columns:
        return None
    values = frame.loc[usable(frame, key), ["run_id", key]]
    losses = {run: loss_of(metric, float(value)) for run, value in values.itertuples(index=False, name=None)}
    strata = []
    for stratum in c.strata:
        pairs = {
            seed: replace(pair, difference=sum(w * losses[run] for run, w in pair.weights.items()))
            for seed, pair in stratum.pairs.items()
            if all(math.isfinite(losses.get(run, math.nan)) for run in pair.weights)
        }
        if pairs:
            strata.append(Stratum(stratum.level_name, stratum.level, stratum.dict_size, stratum.base,
                                  stratum.counterpart, stratum.l0, pairs))  # fmt: skip
    if not strata:
        return None
    fresh = Comparison(c.a, c.b, c.group, tuple(strata), metric.name, c.unfinished, margin=c.margin,
                       left_out=c.left_out)  # fmt: skip
    return _searched(_pooled(fresh), searches or {})


def _searched(c: Comparison, searches: Mapping[Cell, CellSearch]) -> Comparison:
    """Widen the intervals by what the search of either arm leaves open, and take over what its ranges say."""
    if not c.strata or not searches:
        return c
    edge: dict[str, None] = {}
    points, errors = [], []
    for stratum in c.strata:
        found = [s for s in (_search_of(c, stratum, arm, searches) for arm in (c.a, c.b)) if s is not None]
        edge |= dict.fromkeys(f"{s.arm}: {name}" for s in found for name in s.edge)
        points += [s.needed for s in found if s.needed]
        errors.append(max((s.error(c.metric) for s in found), default=0.0))
    search = float(np.mean(errors))
    strata = tuple(replace(s, **_wider(s, e)) for s, e in zip(c.strata, errors, strict=True))
    adjusted = statistics.holm([s.p for s in strata])
    strata = tuple(replace(s, p_holm=float(p)) for s, p in zip(strata, adjusted, strict=True))
    wide = replace(c, strata=strata, edge=tuple(edge), points=max(points, default=None), **_wider(c, search))
    return wide if wide.excludes_zero else replace(wide, needed=_needed(wide))


def _search_of(c: Comparison, s: Stratum, arm: str, searches: Mapping[Cell, CellSearch]) -> CellSearch | None:
    """The search of `arm` in a stratum; where the arm is interpolated, the least certain of those of that width."""
    level = s.level if arm == s.base else s.counterpart[1] if s.counterpart else None
    mine = [v for (group, a, lv, w), v in searches.items()
            if (group, a, w) == (c.group, arm, s.dict_size) and level in (None, lv)]  # fmt: skip
    return max(mine, key=lambda found: found.error(c.metric), default=None)


def _wider(one: Stratum | Comparison, search: float) -> dict[str, Any]:
    """`low`, `high` and `p` with the search error included."""
    low, high = one.low - search, one.high + search
    n = len(one.pairs) if isinstance(one, Stratum) else one.seeds
    half = (one.high - one.low) / 2
    p = statistics.p_of(abs(one.mean) - search, half, n)
    return {"search": search, "low": low, "high": high, "p": p}


def _needed(c: Comparison) -> int | None:
    """Seeds that would decide, were the true difference the one found less what the search leaves open."""
    return statistics.seeds_needed(max(abs(c.mean) - c.search, 0.0), c.sd)


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
    pooled = _pooled(Comparison(base, other, group, tuple(strata), left_out=tuple(left_out)))
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
        seed: Pair(-pair.difference, -pair.l0_gap, {run: -weight for run, weight in pair.weights.items()})
        for seed, pair in stratum.pairs.items()
    }
    return replace(stratum, pairs=pairs)


def _pooled(comparison: Comparison) -> Comparison:
    if not comparison.strata:
        return comparison
    seeds = sorted({seed for s in comparison.strata for seed in s.pairs})
    values = np.array(
        [[s.pairs[seed].difference if seed in s.pairs else math.nan for s in comparison.strata] for seed in seeds]
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
    return pooled if pooled.excludes_zero else replace(pooled, needed=_needed(pooled))


# --- texts -----------------------------------------------------------------------------------------------------------


def runs_of(comparisons: list[Comparison]) -> set[str]:
    """Run ids whose per-example errors `with_texts` wants."""
    return {run for c in comparisons for s in c.strata for pair in s.pairs.values() for run in pair.weights}


def with_texts(comparison: Comparison, errors: dict[str, NDArray[Any]]) -> Comparison:
    """The same with intervals from a bootstrap over hold-out texts: the noise of the data, seeds held fixed.

    `errors` maps run ids to squared errors per test text (of other metrics: to their values per text). Pairs of which a
    run is missing are left out; nothing is computed where test parts differ in length.
    """
    metric = METRICS[comparison.metric]
    ratio = metric.comparison == "ratio"
    kept = [[p for p in s.pairs.values() if all(run in errors for run in p.weights)] for s in comparison.strata]
    runs = sorted({run for pairs in kept for pair in pairs for run in pair.weights})
    if (
        not runs
        or len({len(errors[run]) for run in runs}) > 1
        or (ratio and any(errors[run].sum() <= 0 for run in runs))
    ):
        return comparison
    rows = list(_weights(kept, runs))
    filled = [row for row in rows if row is not None]
    several = [row for row, s in zip(rows, comparison.strata, strict=True) if row is not None and len(s.pairs) > 1]
    pooled = np.mean(several or filled, axis=0)  # of the strata that the interval over seeds is of
    sign = -1.0 if metric.direction == "maximize" else 1.0
    rows_of = np.stack([errors[run] for run in runs])
    weights = [pooled, *filled] if ratio else [sign * row for row in (pooled, *filled)]
    interval = statistics.over_texts(rows_of, weights, log=ratio)
    bounds = iter(zip(interval.low[1:], interval.high[1:], strict=True))
    strata = []
    for stratum, row in zip(comparison.strata, rows, strict=True):
        low, high = next(bounds) if row is not None else (math.nan, math.nan)
        strata.append(replace(stratum, text_low=float(low), text_high=float(high)))
    texted = replace(comparison, strata=tuple(strata), text_low=float(interval.low[0]),
                     text_high=float(interval.high[0]), texts=interval.texts)  # fmt: skip
    return replace(texted, needed=None if texted.excludes_zero else _needed(texted))


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
