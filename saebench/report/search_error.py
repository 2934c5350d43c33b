"""The search error of every cell: how far its chosen point may be from the best one, in each metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saebench.metrics import METRICS, Metric
from saebench.report.metric_table import STABILITY
from saebench.report.points import FINAL, cells, usable

if TYPE_CHECKING:
    from pandas import DataFrame

Cell = tuple[str, str, float, float]
"""group, arm, level, dict_size."""
_RESTATED = {"fvu": "fvu", "mse": "fvu", "explained_variance": "fvu"}
"""Metrics that repeat another one in other units."""
_NOISE = 0.004
"""Loss within which two points of a search cannot be distinguished: twice the standard deviation over seeds
(measured)."""


def loss_of(metric: Metric, value: float) -> float:
    """Return a metric's value as a loss: the logarithm if arms are compared by their ratio, negated if more is better.
    NaN for a ratio of non-positive values."""
    if metric.comparison == "ratio":
        value = math.log(value) if value > 0 else math.nan
    return -value if metric.direction == "maximize" else value


_STABILITY = 0.5
"""Share of latents that other seeds find, per square root of the gap in log FVU (experiments/verdict/stability.csv)."""
_FAR = 0.15
"""Loss beyond which it no longer grows with the square of the distance."""


@dataclass(frozen=True)
class CellSearch:
    """One arm at one sparsity and width."""

    arm: str
    gap: float
    """Expected loss of the chosen point above the best of the ranges, in the objective; infinite if unknown."""
    edge: tuple[str, ...]
    needed: int | None
    """Points that would locate the optimum, if there were too few."""
    objective: str
    """Name of the metric that the search chose by."""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Metric -> largest difference between the chosen point and the best one."""

    def error(self, metric: str) -> float:
        """The search error of a metric."""
        if metric == STABILITY:
            return _STABILITY * math.sqrt(self.gap)
        if _RESTATED.get(metric, metric) == _RESTATED.get(self.objective, self.objective):
            return self.gap
        return math.inf if math.isinf(self.gap) else self.spread.get(metric, 0.0)


def cell_searches(frame: DataFrame, best: DataFrame, objective: str) -> dict[Cell, CellSearch]:
    """Return what the sweeps recorded about their searches; cells without such a record are absent."""
    found: dict[Cell, CellSearch] = {}
    for key, trials in cells(frame):
        mine = best.loc[best.index.intersection(trials.index)]
        about = next((a for a in mine["search_error"] if isinstance(a, dict) and a), None)
        if about is None or not (mine["role"] == "compare").all():
            continue
        gap = about.get("gap")
        value = float(gap) if isinstance(gap, int | float) else math.inf
        name = objective.partition("/")[2]
        spread = _spread(trials, str(mine["point"].iloc[0]), objective, value)
        found[tuple(key)] = CellSearch(str(key[1]), value, _names(about.get("edge")), about.get("needed"), name, spread)
    return found


def _names(edge: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in edge) if isinstance(edge, list) else ()


def _spread(trials: DataFrame, point: str, objective: str, gap: float) -> dict[str, float]:
    """`spread` in every metric, as the search seed measured them."""
    searched = trials[(trials["role"] == "search") & usable(trials, objective)]
    metric, mine = METRICS.get(objective.partition("/")[2]), searched["point"] == point
    if not mine.any() or metric is None:
        return {}
    chosen = int(mine.to_numpy().argmax())
    first = [loss_of(metric, float(value)) for value in searched[objective]]
    found = {}
    for name, other in METRICS.items():
        if (key := f"{FINAL}{name}") in trials.columns and other.direction:
            found[name] = spread(first, [loss_of(other, float(v)) for v in searched[key]], chosen, gap)
    return {name: value for name, value in found.items() if math.isfinite(value)}


def spread(objective: Sequence[float], metric: Sequence[float], chosen: int, gap: float) -> float:
    """Return the largest difference of a metric between the chosen point of a search and the best one; losses of the
    same points in both.

    Loss grows with the square of the distance from the best setting, a metric with the distance itself. So the distance
    in the metric of a point whose loss is `worse` higher counts sqrt(gap / worse) times; losses within noise are equal.
    """
    found = 0.0
    for loss, value in zip(objective, metric, strict=True):
        worse, distance = max(abs(loss - objective[chosen]), _NOISE), abs(value - metric[chosen])
        if worse <= _FAR and math.isfinite(distance):
            found = max(found, distance * min(1.0, math.sqrt(gap / worse)))
    return found
