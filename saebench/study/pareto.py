"""A pruner for trials whose sparsity moves: it stops trials that are worse in both L0 and reconstruction error.

It depends only on Optuna, so it works for any study with two measures of which less is better:

    study = optuna.create_study(pruner=ParetoPruner(margin=0.05, n_warmup_steps=1000))
    ...
    report_pair(trial, step, l0, fvu)
    if trial.should_prune():
        raise optuna.TrialPruned()

Optuna itself prunes only studies with one objective, so the study keeps one (here the second measure, as `report` needs
a value), and the pair travels in a user attribute per step.
"""

from __future__ import annotations

from typing import NamedTuple

import optuna
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState


class Rival(NamedTuple):
    """The trial that shows another one to be dominated."""

    number: int
    """Optuna's number, within the study."""
    pair: tuple[float, float]
    peers: int
    """Trials compared with."""


def record_pair(trial: optuna.trial.Trial, step: int, first: float, second: float) -> None:
    """Record both measures of `trial` at `step`; `trial.report` of that step is to follow."""
    trial.set_user_attr(_key(step), [first, second])


def report_pair(trial: optuna.trial.Trial, step: int, first: float, second: float) -> None:
    """Record both measures of `trial` at `step`, and report the second as Optuna's intermediate value."""
    record_pair(trial, step, first, second)
    trial.report(second, step)


def pair(trial: FrozenTrial, step: int) -> tuple[float, float] | None:
    """Return both measures at `step`; None if the trial has none there."""
    found = trial.user_attrs.get(_key(step))
    return None if found is None else (float(found[0]), float(found[1]))


def _key(step: int) -> str:
    return f"pareto:{step}"


class ParetoPruner(BasePruner):
    """Stops a trial only if, at its own step, another trial of the study is better in both measures by `margin`.

    Better by a margin m means: below (1 - m) times the value. A trial that is best in one of the two is never stopped,
    so the front survives whatever the order of the trials. Compared are the trials that reported the same step,
    finished, stopped or running; not the failed and not the infeasible.
    """

    def __init__(self, margin: float = 0.05, n_warmup_steps: int = 0) -> None:
        """`margin`: relative, 0 to 1. `n_warmup_steps`: nothing is stopped at a step before this one."""
        if not 0 <= margin < 1:
            raise ValueError(f"margin: {margin}: must be at least 0 and below 1")
        if n_warmup_steps < 0:
            raise ValueError(f"n_warmup_steps: {n_warmup_steps}: must not be negative")
        self._margin, self._warmup = margin, n_warmup_steps

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step < self._warmup:
            return False
        found = self.rival(study, trial, step)
        return found is not None and self._beats(found.pair, pair(trial, step))

    def rival(self, study: optuna.Study, trial: FrozenTrial, step: int) -> Rival | None:
        """Of the trials better in the first measure by the margin, the best in the second: if any trial stops this one,
        it does. None if there is no such trial."""
        own = pair(trial, step)
        if own is None:
            return None
        others = study.get_trials(deepcopy=False, states=_COMPARED)
        pairs = [(p, t.number) for t in others if t.number != trial.number and _feasible(t) and (p := pair(t, step))]
        sparser = [(p, number) for p, number in pairs if p[0] < own[0] * (1 - self._margin)]
        if not sparser:
            return None
        best, number = min(sparser, key=lambda found: found[0][1])
        return Rival(number, best, len(pairs))

    def _beats(self, other: tuple[float, float], own: tuple[float, float] | None) -> bool:
        return own is not None and all(o < mine * (1 - self._margin) for o, mine in zip(other, own, strict=True))


_COMPARED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)


def _feasible(trial: FrozenTrial) -> bool:
    return all(value <= 0 for value in trial.constraints.values())
