"""Which runs of two arms are compared: strata of equal L0, pairs by seed, interpolation along log L0."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from saebench.report.comparison import FVU, L0, Pair, Stratum

if TYPE_CHECKING:
    from pandas import DataFrame

TOLERANCE = 0.05
"""Relative difference of measured L0 up to which two strata are compared without interpolation."""
Run = tuple[float, float, str]
"""log FVU, log L0, run id."""
Cells = dict[float, dict[tuple[str, float], dict[int, Run]]]
"""width -> (name, value of the sparsity parameter) -> seed -> run."""


def cells_of(trials: DataFrame) -> Cells:
    cells: Cells = {}
    columns = ["dict_size", "level_name", "level", "seed", FVU, L0, "run_id"]
    for width, name, level, seed, fvu, l0, run in trials[columns].itertuples(index=False, name=None):
        if fvu > 0 and l0 > 0 and level == level and width == width:
            runs = cells.setdefault(float(width), {}).setdefault((name, level), {})
            runs[int(seed)] = (math.log(fvu), math.log(l0), run)
    return cells


def match(base: str, other: str, of_base: Cells, of_other: Cells) -> tuple[list[Stratum], list[str]]:
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


def negated(stratum: Stratum) -> Stratum:
    pairs = {
        seed: Pair(-pair.difference, -pair.l0_gap, {run: -weight for run, weight in pair.weights.items()})
        for seed, pair in stratum.pairs.items()
    }
    return replace(stratum, pairs=pairs)
