"""The next point of a stratum: what Optuna hands out, or we ourselves, as a trial that is in the journal."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from saebench.errors import SpecError
from saebench.plan import Plan
from saebench.spec import Scalar
from saebench.study import samplers
from saebench.study.stratum_search import StratumSearch, Trial


def draw(plan: Plan, stratum_search: StratumSearch, number: int) -> Trial | None:
    """An enqueued point, the next of the grid, or what the sampler proposes. None where a point was drawn a second
    time or none is left; the stratum_search then says which."""
    stratum, study = stratum_search.stratum, stratum_search.study
    past = study.get_trials(deepcopy=False)
    study.sampler = samplers.make_sampler(plan.spec.search, study.study_name, len(past))
    begun = {trial.user_attrs.get("enqueued") for trial in past}
    for index, point in enumerate(stratum_search.enqueued):
        whole = point.keys() == stratum_search.space.keys()
        if whole and plan.point_id(stratum, point) not in stratum_search.points:
            return add(stratum_search, study, point, search_seed(plan), number)
        if not whole and index not in begun:
            study.enqueue_trial({k: samplers.encode(v) for k, v in point.items()}, user_attrs={"enqueued": index})
            break
    else:
        if stratum.grid is not None or not stratum_search.space:
            listed = stratum.grid if stratum.grid is not None else ({},)
            left = (point for point in listed if plan.point_id(stratum, point) not in stratum_search.points)
            if (following := next(left, None)) is not None:
                return add(stratum_search, study, following, search_seed(plan), number)
            stratum_search.exhausted = True
            return None
    return accept(plan, stratum_search, study.ask(), number)


def accept(plan: Plan, stratum_search: StratumSearch, trial: optuna.trial.Trial, number: int) -> Trial | None:
    """Make a trial of what Optuna has handed out. A point that was drawn before is given back (as FAIL, which no
    sampler sees) and another one taken; a small space may have none left."""
    samplers.suggest(trial, stratum_search.space)
    params, seed = samplers.decode(stratum_search.stratum, trial.params), search_seed(plan)
    if plan.point_id(stratum_search.stratum, params) not in stratum_search.points:
        trial.set_user_attr("number", number)
        trial.set_user_attr("seed", seed)
        return Trial(number, stratum_search, stratum_search.study, trial._trial_id, params, seed, handle=trial)
    trial.set_user_attr("duplicate", True)
    stratum_search.study.tell(trial, state=TrialState.FAIL)
    # of the stratum, not of the study: another name of the sweep must not draw other points
    chance = zlib.crc32(f"{stratum_search.stratum.id}:{plan.spec.search.seed}:{trial.number}".encode())
    other = samplers.untried(plan, stratum_search.stratum, stratum_search.points, chance)
    stratum_search.exhausted = other is None and samplers.is_small(stratum_search.stratum)
    return add(stratum_search, stratum_search.study, other, seed, number) if other is not None else None


def search_seed(plan: Plan) -> int:
    """Of the search; the others are of replicates."""
    return plan.spec.seeds[0]


def add(
    stratum_search: StratumSearch,
    study: optuna.Study,
    params: dict[str, Scalar],
    seed: int,
    number: int,
    attrs: Mapping[str, Any] | None = None,
    intermediate: Mapping[int, float] | None = None,
    system: Mapping[str, Any] | None = None,
    replicate: bool = False,
) -> Trial:
    """A running trial with known params, whole and with its number in one record of the journal."""
    try:
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params={name: samplers.encode(value) for name, value in params.items()},
                distributions=stratum_search.space,
                user_attrs={"number": number, "seed": seed, **(attrs or {})},
                intermediate_values=dict(intermediate or {}),
                system_attrs=dict(system or {}),
            )
        )
    except ValueError as error:
        raise SpecError(f"{stratum_search.stratum.id}: {params}: {error}") from None
    trial_id = max(trial._trial_id for trial in study.get_trials(deepcopy=False))
    return Trial(number, stratum_search, study, trial_id, params, seed, replicate=replicate)
