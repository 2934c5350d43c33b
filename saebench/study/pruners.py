"""Optuna's pruners with steps in examples seen, and the numbers behind each verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import optuna
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
    ThresholdPruner,
)
from optuna.trial import FrozenTrial, TrialState

from saebench.errors import SpecError
from saebench.plan import Plan, Stratum
from saebench.study.journal import frozen
from saebench.study.pareto import ParetoPruner, pair, record_pair
from saebench.sweep_config import PruneConfig

PAIR = ("eval/l0", "eval/fvu")
"""What `pareto` compares."""


def make_pruner(plan: Plan, stratum: Stratum) -> BasePruner:
    """The stratum's pruner; steps are examples seen. Raises SpecError if its parameters do not fit."""
    prune, start = plan.spec.prune, plan.prune_from(stratum)
    return NopPruner() if start >= plan.samples else PRUNERS[prune.pruner].make(prune, start, plan.samples)


def report(trial: optuna.trial.Trial, step: int, value: float, values: Mapping[str, float]) -> None:
    """Report to Optuna what `trial` measured at `step`; a step that is already reported stays unchanged."""
    if step in frozen(trial).intermediate_values:
        return
    if isinstance(trial.study.pruner, ParetoPruner) and all(key in values for key in PAIR):
        record_pair(trial, step, values[PAIR[0]], values[PAIR[1]])
    trial.report(value, step)


def judge(trial: optuna.trial.Trial, step: int, value: float) -> tuple[bool, dict[str, Any]]:
    """Return whether to stop a trial that has just reported `step`, and the numbers behind it.

    value: what was reported; threshold: what it had to reach (None if nothing was compared); peers: how many other
    trials it was compared with; rung: of asha and hyperband, the one that was passed or failed here.
    """
    pruner, study = trial.study.pruner, trial.study
    rungs_before = _rungs(frozen(trial))
    stop = trial.should_prune()
    now = frozen(trial)
    at = _Judged(pruner, study, now, step, value, stop, rungs_before)
    row = next((row for row in PRUNERS.values() if isinstance(pruner, row.kind)), None)
    numbers: dict[str, Any] = {"value": value, "threshold": None, "rung": None, "peers": 0}
    return stop, numbers | (row.numbers(at) if row is not None else {})


class _Judged(NamedTuple):
    """A trial at the mark at which it is judged."""

    pruner: Any
    study: optuna.Study
    trial: FrozenTrial
    step: int
    value: float
    stop: bool
    rungs_before: int


def _make_threshold(prune: PruneConfig, start: int, _budget: int) -> BasePruner:
    if prune.lower is None and prune.upper is None:
        raise SpecError("prune: threshold needs upper, lower or both")
    return ThresholdPruner(lower=prune.lower, upper=prune.upper, n_warmup_steps=start)


def _make_asha(prune: PruneConfig, start: int, _budget: int) -> BasePruner:
    """`auto` would stop nothing before the first trial is complete; a bootstrap count stops the first ones."""
    return SuccessiveHalvingPruner(min_resource=start, reduction_factor=prune.reduction_factor)


def _median(at: _Judged) -> dict[str, Any]:
    """MedianPruner lets the trial's best value so far meet the median of what complete trials had at this step."""
    complete = at.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    peers = [t.intermediate_values[at.step] for t in complete if at.step in t.intermediate_values]
    best = max if at.study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    return {
        "best": best(at.trial.intermediate_values.values()),
        "threshold": statistics.median(peers) if peers else None,
        "peers": len(peers),
    }


def _rungs(trial: FrozenTrial) -> int:
    """Return the number of rungs that the trial has reached."""
    return sum(key.startswith("completed_rung_") for key in trial.system_attrs)


def _rung_reached(at: _Judged) -> dict[str, Any]:
    rungs = _rungs(at.trial)
    return _rung(at.study, at.trial, rungs - 1) if rungs > at.rungs_before else {}


def _rung(study: optuna.Study, trial: FrozenTrial, rung: int) -> dict[str, Any]:
    """The cut at a rung: the value of the last of the best 1/reduction_factor of the trials that reached it."""
    key, pruner = f"completed_rung_{rung}", study.pruner
    trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    numbers: dict[str, Any] = {"rung": rung}
    if isinstance(pruner, HyperbandPruner):
        bracket = pruner._get_bracket_id(study, trial)
        trials = [t for t in trials if pruner._get_bracket_id(study, t) == bracket]
        numbers["bracket"] = bracket
    assert isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner)
    values = sorted(t.system_attrs[key] for t in trials if key in t.system_attrs)
    kept = max(1, len(values) // pruner._reduction_factor)
    if study.direction == optuna.study.StudyDirection.MAXIMIZE:
        values.reverse()
    return {**numbers, "threshold": values[kept - 1], "peers": len(values) - 1}


def _bound(pruner: ThresholdPruner) -> float | None:
    """Return the bound to show if none was crossed: the upper one if it exists."""
    return next((bound for bound in (pruner._upper, pruner._lower) if math.isfinite(bound)), None)


def _threshold(at: _Judged) -> dict[str, Any]:
    upper, lower = at.pruner._upper, at.pruner._lower
    return {"threshold": upper if at.value > upper else lower if at.stop else _bound(at.pruner)}


def _pareto(at: _Judged) -> dict[str, Any]:
    own, rival = pair(at.trial, at.step), at.pruner.rival(at.study, at.trial, at.step)
    numbers: dict[str, Any] = {"l0": own[0] if own else None}
    if rival is None:
        return numbers
    named = next(t for t in at.study.get_trials(deepcopy=False) if t.number == rival.number)
    said = {"rival": named.user_attrs.get("number"), "rival_l0": rival.pair[0]}
    # own fvu at which the rival would just not be better by the margin
    return {**numbers, **said, "threshold": rival.pair[1] / (1 - at.pruner._margin), "peers": rival.peers}


class Pruner(NamedTuple):
    """One row of `PRUNERS`."""

    kind: type[BasePruner]
    make: Callable[[PruneConfig, int, int], BasePruner]
    """From the settings, the examples before which nothing is stopped, and the budget."""
    numbers: Callable[[_Judged], dict[str, Any]]
    """The numbers behind its verdict."""


PRUNERS: dict[str, Pruner] = {
    "none": Pruner(NopPruner, lambda *_: NopPruner(), lambda _: {}),
    "median": Pruner(
        MedianPruner,
        lambda prune, start, _: MedianPruner(n_startup_trials=prune.startup_trials, n_warmup_steps=start),
        _median,
    ),
    "asha": Pruner(SuccessiveHalvingPruner, _make_asha, _rung_reached),
    "hyperband": Pruner(
        HyperbandPruner, lambda prune, start, most: HyperbandPruner(start, most, prune.reduction_factor), _rung_reached
    ),
    "threshold": Pruner(ThresholdPruner, _make_threshold, _threshold),
    "pareto": Pruner(ParetoPruner, lambda prune, start, _: ParetoPruner(prune.margin, start), _pareto),
}
"""`prune.pruner` -> the pruner."""
