"""Arms against each other at equal L0: paired log-ratios of FVU over (sparsity, width, seed)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.metrics import Metric
from saebench.report import statistics
from saebench.report.comparison import FVU, L0, Comparison, Stratum
from saebench.report.pairing import Cells, cells_of, match, negated
from saebench.report.points import FINAL, arms, usable
from saebench.report.search_error import Cell, CellSearch, loss_of

if TYPE_CHECKING:
    from pandas import DataFrame


def compare(
    frame: DataFrame, best: DataFrame, searches: Mapping[Cell, CellSearch] | None = None, unfinished: str = ""
) -> list[Comparison]:
    """Compare FVU of every pair of arms that share data and budget; `best` as `points.chosen` gives it, `searches` as
    `search_error.cell_searches` does."""
    results: list[Comparison] = []
    for group, trials in frame.groupby("group", sort=False):
        there = best[(best["group"] == group) & usable(best, FVU) & usable(best, L0)]
        found = {arm: cells_of(there[there["arm"] == arm]) for arm in arms(trials)}
        results += [_compare(a, b, str(group), found[a], found[b]) for a, b in combinations(found, 2)]
    results = [searched(replace(c, unfinished=unfinished), searches or {}) for c in results]
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
    return searched(pool(fresh), searches or {})


def searched(c: Comparison, searches: Mapping[Cell, CellSearch]) -> Comparison:
    """Widen the intervals by the search error of either arm, and copy the warnings about its ranges."""
    if not c.strata or not searches:
        return c
    edge: dict[str, None] = {}
    points, errors, own = [], [], []
    for stratum in c.strata:
        found = [s for s in (_search_of(c, stratum, arm, searches) for arm in (c.a, c.b)) if s is not None]
        edge |= dict.fromkeys(f"{s.arm}: {name}" for s in found for name in s.edge)
        points += [s.needed for s in found if s.needed]
        errors.append(max((s.error(c.metric) for s in found), default=0.0))
        own.append(math.inf if any(s.edge for s in found) else errors[-1])
    search = float(np.mean(errors))
    strata = tuple(replace(s, **_wider(s, e)) for s, e in zip(c.strata, own, strict=True))
    adjusted = statistics.holm([s.p for s in strata])
    strata = tuple(replace(s, p_holm=float(p)) for s, p in zip(strata, adjusted, strict=True))
    wide = replace(c, strata=strata, edge=tuple(edge), points=max(points, default=None), **_wider(c, search))
    return wide if wide.excludes_zero else replace(wide, needed=needed(wide))


def _search_of(c: Comparison, s: Stratum, arm: str, searches: Mapping[Cell, CellSearch]) -> CellSearch | None:
    """Return the search of `arm` in a stratum; if the arm is interpolated, the least certain one of that width."""
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


def _compare(a: str, b: str, group: str, of_a: Cells, of_b: Cells) -> Comparison:
    """Strata are those of the arm of which more can be matched. The arm with the lower FVU comes first."""
    of_a_strata, of_b_strata = match(a, b, of_a, of_b), match(b, a, of_b, of_a)
    base, other = (a, b) if len(of_a_strata[0]) >= len(of_b_strata[0]) else (b, a)
    strata, left_out = of_a_strata if base == a else of_b_strata
    pooled = pool(Comparison(base, other, group, tuple(strata), left_out=tuple(left_out)))
    if pooled.mean > 0 or (not strata and base != a):
        pooled = pool(replace(pooled, a=other, b=base, strata=tuple(negated(s) for s in strata)))
    return pooled


def pool(comparison: Comparison) -> Comparison:
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
    return pooled if pooled.excludes_zero else replace(pooled, needed=needed(pooled))


def needed(c: Comparison) -> int | None:
    """Return the seeds that would decide, if the true difference is the one found minus the search error."""
    return statistics.seeds_needed(max(abs(c.mean) - c.search, 0.0), c.sd)
