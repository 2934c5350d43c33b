"""Refinement and choice of a stratum, by `response.py`: where to measure next, which point the other seeds measure."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from saebench import response
from saebench.metrics import metric_of
from saebench.plan import Plan
from saebench.response import Axis, Measured
from saebench.runs.tags import Tag
from saebench.spec import Range, Scalar
from saebench.study.stratum_search import StratumSearch, Trial

Params = dict[str, Scalar]
_HALVINGS = 4
"""How often a proposed point is moved half-way to the best one."""


def propose(plan: Plan, search: StratumSearch) -> tuple[Params, ...]:
    """Return the next round of refinement; empty if the best point is located, or no more points are allowed."""
    stratum, room = search.stratum, search.stratum.refine - search.refined
    ranges, candidates = stratum.ranges, search.candidates()
    if room <= 0 or not ranges or not candidates:
        return ()
    trials, points, _ = _measured(plan, ranges, candidates)
    shared = {name: value for name, value in trials[0].params.items() if not isinstance(stratum.space[name], Range)}
    found: list[Params] = []
    stopped = [_shares(ranges, t.params) for t in search.trials.values() if t.state in ("pruned", "failed")]
    best = min(points, key=lambda point: point.loss).at
    for wanted in response.propose(points, len(ranges), room):
        shares = _beside(stopped, wanted, best)
        params = {**shared, **{axis.name: _typed(axis, axis.value(s)) for axis, s in zip(ranges, shares, strict=True)}}
        params = {name: params[name] for name in stratum.space}
        if plan.point_id(stratum, params) not in search.points:
            found.append(params)
    return tuple(found)


def _shares(ranges: Sequence[Axis], params: Params) -> tuple[float, ...]:
    return tuple(axis.share(float(params[axis.name])) for axis in ranges)  # type: ignore[arg-type]


def _beside(stopped: Sequence[Sequence[float]], wanted: Sequence[float], best: Sequence[float]) -> tuple[float, ...]:
    """Return a proposed point, moved towards the best one while a trial was stopped there: such a trial has no final
    value, and with nothing in its place the optimum would stay unlocated."""
    at = tuple(wanted)
    for _ in range(_HALVINGS):
        if not any(max(abs(a - b) for a, b in zip(at, other, strict=True)) <= response.SAME for other in stopped):
            break
        at = tuple((a + b) / 2 for a, b in zip(at, best, strict=True))
    return at


def choose(plan: Plan, search: StratumSearch) -> tuple[Trial, dict[str, Any]] | None:
    """Return the trial whose point is chosen, and its search error (see docs/report.md); None without a complete trial.

    gap: how far the objective of the chosen point may lie above the best of the ranges, as a logarithm of the ratio or
    as a difference; null if unknown. edge: ranges at whose end the best point lies. needed: points that would locate it
    if there were too few. drawn, refined: points that were tried. searched: the ranges.
    """
    candidates = search.candidates()
    if not candidates:
        return None
    ranges = search.stratum.ranges
    trials, points, scale = _measured(plan, ranges, candidates)
    choice = response.choose(points, ranges)
    others = [_loss(plan, t.value, scale) for t in candidates if t not in trials]
    gap = max(choice.gap, response.regret(points[choice.index].loss, others)) * scale
    about = {
        "gap": gap if math.isfinite(gap) else None,
        "edge": list(choice.edge),
        "needed": choice.needed,
        "drawn": len(search.drawn),
        "refined": search.refined,
        "searched": {axis.name: [axis.low, axis.high] for axis in ranges},
    }
    return trials[choice.index], about


def choice_tags(about: dict[str, Any], number: int) -> dict[str, str]:
    """Return the tags of the trials that measure the `number`-th choice of a stratum; the highest number counts."""
    return {Tag.ROLE: "compare", Tag.CHOICE: str(number), Tag.SEARCH_ERROR: json.dumps(about)}


def _measured(
    plan: Plan, ranges: Sequence[Axis], candidates: Sequence[Trial]
) -> tuple[list[Trial], list[Measured], float]:
    """The trials that share the choices of the best one, as points of the ranges; and the unit of their losses."""
    ratio = _is_ratio(plan)
    scale = 1.0 if ratio else max(statistics.median(abs(t.value or 0.0) for t in candidates), 1e-12)
    best = min(candidates, key=lambda trial: _ordered(_loss(plan, trial.value, scale)))
    names = {axis.name for axis in ranges}
    trials = [t for t in candidates if all(t.params[k] == v for k, v in best.params.items() if k not in names)]
    points = [
        Measured(tuple(axis.share(_number(t.params[axis.name])) for axis in ranges), _loss(plan, t.value, scale))
        for t in trials
    ]
    return trials, points, scale


def _loss(plan: Plan, value: float | None, scale: float) -> float:
    search = plan.spec.search
    maximize = search.direction == "maximize"
    return math.nan if value is None else response.loss(value, ratio=_is_ratio(plan), maximize=maximize) / scale


def _is_ratio(plan: Plan) -> bool:
    metric = metric_of(plan.spec.search.objective)
    return metric is not None and metric.comparison == "ratio"


def _ordered(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _number(value: Scalar) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _typed(axis: Axis, value: float) -> Scalar:
    return round(value) if axis.integer else float(value)
