"""What a trial measured and how it ended, in Optuna's records: whether to prune it at a mark, and its final state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from saebench.plan import Plan
from saebench.runs.events import FailureKind, Verdict
from saebench.study import pruners
from saebench.study.journal import frozen
from saebench.study.stratum_search import End, Trial

INFEASIBLE: frozenset[str] = frozenset({"cuda_oom", "diverged", "collapsed"})
"""Failures that the point itself causes: recorded as a violated constraint, which the sampler learns from. (As FAIL
they would be invisible to TPE, which then proposes the same again and again.)"""


@dataclass(frozen=True)
class Decision:
    """The answer to an evaluation."""

    verdict: Verdict
    numbers: dict[str, Any]
    """pruner, samples, value, threshold, rung, peers: the reasons for it."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, as the journal has it."""

    state: End
    values: dict[str, float]
    """Metrics at its end."""
    kind: FailureKind | None
    verdict: dict[str, Any]


def objective_of(plan: Plan, number: int, values: Mapping[str, float]) -> float:
    """Return the objective among what a trial measured. Raises ValueError if it is missing."""
    key = plan.spec.search.objective
    if key not in values:
        raise ValueError(f"trial {number}: search.objective: {key}: not measured; there are: {_names(values)}")
    return float(values[key])


def judge_mark(plan: Plan, trial: Trial, samples: int, values: Mapping[str, float]) -> Decision:
    """Report to Optuna what a trial measured after `samples` examples; return whether to prune it (`Search.report` has
    the rules)."""
    value = objective_of(plan, trial.number, values)
    pruner = "none" if trial.replicate or trial.refinement else plan.spec.prune.pruner
    numbers: dict[str, Any] = {"pruner": pruner, "samples": samples, "value": value}
    if not math.isfinite(value) or trial.state != "running":
        return Decision(Verdict.GO, numbers)
    marks = plan.marks()
    mark = marks[max(0, bisect_right(marks, samples) - 1)]  # batches may pass a mark by a few examples
    past = frozen(trial.trial)
    if mark in past.intermediate_values:
        return _recorded_decision(past, samples, numbers)
    pruners.report(trial.trial, mark, value, values)
    if mark >= marks[-1] or pruner == "none":
        return Decision(Verdict.GO, numbers)
    stop, found = pruners.judge(trial.trial, mark, value)
    numbers |= found
    if stop:
        trial.trial.set_user_attr("verdict", {"verdict": Verdict.PRUNE.value, **numbers})
    return Decision(Verdict.PRUNE if stop else Verdict.GO, numbers)


def record_end(
    plan: Plan,
    trial: Trial,
    state: End,
    values: Mapping[str, float],
    kind: FailureKind | None,
    numbers: Mapping[str, Any] | None,
) -> None:
    """Record in Optuna, and in `trial`, how it ended. A complete trial whose objective is not finite has diverged."""
    objective = objective_of(plan, trial.number, values) if state == "complete" else math.nan
    if state == "complete" and not math.isfinite(objective):
        state, kind = "failed", "diverged"
    study, handle = trial.study, trial.trial
    finite = {key: value for key, value in values.items() if math.isfinite(value)}
    for key, said in (("kind", kind), ("verdict", numbers), ("values", finite)):
        if said:
            handle.set_user_attr(key, dict(said) if isinstance(said, Mapping) else said)
    if state == "complete":
        study.tell(handle, objective)
    elif state == "pruned":
        study.tell(handle, state=TrialState.PRUNED)
    elif kind in INFEASIBLE:
        handle.set_constraint(str(kind), 1.0)
        study.tell(handle, state=TrialState.PRUNED)
    else:
        study.tell(handle, state=TrialState.FAIL)
    trial.state, trial.handle = state, None
    trial.value = objective if state == "complete" else None


def recorded_end(trial: Trial) -> Ended | None:
    """Return how a trial ended, as the journal has it; None if it has not."""
    if trial.state == "running":
        return None
    attrs = frozen(trial.trial).user_attrs
    return Ended(trial.state, dict(attrs.get("values", {})), attrs.get("kind"), dict(attrs.get("verdict", {})))


def _recorded_decision(past: FrozenTrial, samples: int, numbers: dict[str, Any]) -> Decision:
    """Return the decision on a mark that is in the journal."""
    verdict = past.user_attrs.get("verdict", {})
    if verdict.get("verdict") != Verdict.PRUNE or verdict.get("samples") != samples:
        return Decision(Verdict.GO, numbers)
    return Decision(Verdict.PRUNE, {key: value for key, value in verdict.items() if key != "verdict"})


def _names(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or "none"
