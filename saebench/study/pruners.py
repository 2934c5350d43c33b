"""Optuna's pruners with steps in examples seen, and the numbers behind each verdict."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

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

PAIR = ("eval/l0", "eval/fvu")
"""What `pareto` compares."""


def make_pruner(plan: Plan, stratum: Stratum) -> BasePruner:
    """The stratum's pruner; steps are examples seen. Raises SpecError if its parameters do not fit."""
    prune, start = plan.spec.prune, plan.prune_from(stratum)
    if start >= plan.samples:
        return NopPruner()
    match prune.pruner:
        case "median":
            return MedianPruner(n_startup_trials=prune.startup_trials, n_warmup_steps=start)
        case "asha":
            # `auto` would stop nothing before the first trial is complete; a bootstrap count stops the first ones
            return SuccessiveHalvingPruner(min_resource=start, reduction_factor=prune.reduction_factor)
        case "hyperband":
            return HyperbandPruner(start, plan.samples, prune.reduction_factor)
        case "threshold":
            if prune.lower is None and prune.upper is None:
                raise SpecError("prune: threshold needs upper, lower or both")
            return ThresholdPruner(lower=prune.lower, upper=prune.upper, n_warmup_steps=start)
        case "pareto":
            return ParetoPruner(prune.margin, start)
        case _:
            return NopPruner()


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
    numbers: dict[str, Any] = {"value": value, "threshold": None, "rung": None, "peers": 0}
    if isinstance(pruner, MedianPruner):
        numbers |= _median(study, now, step)
    elif isinstance(pruner, SuccessiveHalvingPruner | HyperbandPruner):
        if _rungs(now) > rungs_before:
            numbers |= _rung(study, now, _rungs(now) - 1)
    elif isinstance(pruner, ThresholdPruner):
        numbers["threshold"] = pruner._upper if value > pruner._upper else pruner._lower if stop else _bound(pruner)
    elif isinstance(pruner, ParetoPruner):
        numbers |= _pareto(pruner, study, now, step)
    return stop, numbers


def _median(study: optuna.Study, trial: FrozenTrial, step: int) -> dict[str, Any]:
    """MedianPruner lets the trial's best value so far meet the median of what complete trials had at this step."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    peers = [t.intermediate_values[step] for t in complete if step in t.intermediate_values]
    best = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    return {
        "best": best(trial.intermediate_values.values()),
        "threshold": statistics.median(peers) if peers else None,
        "peers": len(peers),
    }


def _rungs(trial: FrozenTrial) -> int:
    """Return the number of rungs that the trial has reached."""
    return sum(key.startswith("completed_rung_") for key in trial.system_attrs)


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


def _pareto(pruner: ParetoPruner, study: optuna.Study, trial: FrozenTrial, step: int) -> dict[str, Any]:
    own, rival = pair(trial, step), pruner.rival(study, trial, step)
    numbers: dict[str, Any] = {"l0": own[0] if own else None}
    if rival is None:
        return numbers
    named = next(t for t in study.get_trials(deepcopy=False) if t.number == rival.number)
    said = {"rival": named.user_attrs.get("number"), "rival_l0": rival.pair[0]}
    # own fvu at which the rival would just not be better by the margin
    return {**numbers, **said, "threshold": rival.pair[1] / (1 - pruner._margin), "peers": rival.peers}
