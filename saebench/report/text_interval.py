"""Intervals over test texts: the uncertainty due to the choice of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.report import statistics
from saebench.report.compare import needed
from saebench.report.comparison import Comparison, Pair
from saebench.report.metric_table import ALL


def runs_of(comparisons: list[Comparison]) -> set[str]:
    """Run ids whose per-example errors `with_texts` wants."""
    return {run for c in comparisons for s in c.strata for pair in s.pairs.values() for run in pair.weights}


def with_texts(comparison: Comparison, errors: dict[str, NDArray[Any]]) -> Comparison:
    """Return the comparisons with intervals from a bootstrap over test texts: the noise of the data, with fixed seeds.

    `errors` maps run ids to squared errors per test text (of other metrics: to their values per text). Pairs of which a
    run is missing are left out; nothing is computed if test parts differ in length.
    """
    metric = ALL[comparison.metric]
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
    return replace(texted, needed=None if texted.excludes_zero else needed(texted))


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
