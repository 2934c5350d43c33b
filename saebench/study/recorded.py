"""Trials that the journal, or the directory of a trial, has from an earlier start."""

from __future__ import annotations

from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from saebench.config import TrialConfig
from saebench.errors import SpecError
from saebench.plan import Plan
from saebench.runs.state import same_trial
from saebench.spec import Range, Scalar
from saebench.study.draw import search_seed
from saebench.study.stratum_search import StratumSearch, Trial, known_trial


def recorded_trials(
    plan: Plan, searches: Sequence[StratumSearch]
) -> tuple[list[Trial], list[tuple[StratumSearch, FrozenTrial]]]:
    """Return the trials of the journal, by number and, of one number, by age; then those that a crash left without a
    number."""
    found: list[Trial] = []
    unnumbered: list[tuple[StratumSearch, FrozenTrial]] = []
    for search in searches:
        for study in filter(None, (search.study, search.replicates)):
            for past in study.get_trials(deepcopy=False):
                if "number" in past.user_attrs:
                    found.append(known_trial(search, study, past, search_seed(plan)))
                elif past.state == TrialState.RUNNING:
                    unnumbered.append((search, past))
    return sorted(found, key=lambda trial: (trial.number, trial.trial_id)), unnumbered


def resume_round(plan: Plan, search: StratumSearch) -> None:
    """Queue the points of an interrupted round of refinement that had not started."""
    rounds = [trial.refinement for _, trial in sorted(search.trials.items()) if trial.refinement]
    for params in rounds[-1] if rounds else ():
        if plan.point_id(search.stratum, params) not in search.points:
            search.proposals.append((params, rounds[-1]))


def planned_params(plan: Plan, search: StratumSearch, config: TrialConfig) -> dict[str, Scalar] | None:
    """Return the searched parameters of a trial's configuration; None if it is not a trial of this plan."""
    params = _params_of(search, config)
    if params is None or config.seed not in plan.spec.seeds:
        return None
    try:
        same = same_trial(plan.trial(search.stratum, params, config.seed, config.number), config)
    except SpecError:
        return None
    return params if same else None


def _params_of(search: StratumSearch, config: TrialConfig) -> dict[str, Scalar] | None:
    """Return the searched parameters; None if one is missing or outside the space."""
    found: dict[str, Scalar] = {}
    for name, space in search.stratum.space.items():
        value = getattr(config.sae, name, getattr(config.train, name, None))
        if isinstance(space, Range):
            if not isinstance(value, int | float):
                return None
            found[name] = value
        elif value in space:
            found[name] = space[space.index(value)]
        else:
            return None
    return found
