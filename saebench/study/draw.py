"""The next point of a stratum, from the sequence that strata share or from Optuna, as a trial in the journal."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from saebench.errors import SpecError
from saebench.plan import Plan, Stratum
from saebench.runs.tags import Tag
from saebench.spec import Scalar
from saebench.study import samplers
from saebench.study.refine import choice_tags
from saebench.study.stratum_search import StratumSearch, Trial

SEARCH_TAGS = {Tag.ROLE: "search"}


def draw(plan: Plan, search: StratumSearch, number: int) -> Trial | None:
    """Return an enqueued point, the next of the grid or of the shared sequence, or what Optuna's sampler proposes. None
    if Optuna drew a point a second time, or if no point is left; then the search is marked as exhausted."""
    stratum = search.stratum
    for known in search.enqueued:
        point = {**samplers.shared_point(plan, stratum, 0), **known}
        point = {name: point[name] for name in stratum.space}
        if plan.point_id(stratum, point) not in search.points:
            return add(search, search.study, point, search_seed(plan), number, {"enqueued": True})
    if stratum.grid is not None or not search.space:
        return _next_listed(plan, search, number)
    if samplers.is_adaptive(plan.spec.search, len(search.drawn)):
        study = search.study
        study.sampler = samplers.make_sampler(plan.spec.search, stratum, len(study.get_trials(deepcopy=False)))
        return accept(plan, search, study.ask(), number)
    return _next_shared(plan, search, number)


def _next_listed(plan: Plan, search: StratumSearch, number: int) -> Trial | None:
    stratum = search.stratum
    listed = stratum.grid if stratum.grid is not None else ({},)
    left = (point for point in listed if plan.point_id(stratum, point) not in search.points)
    if (following := next(left, None)) is not None:
        return add(search, search.study, following, search_seed(plan), number)
    search.exhausted = True
    return None


_REPEATS = 100
"""Most repeated points of the shared sequence before a finite space is listed for unused points."""


def _next_shared(plan: Plan, search: StratumSearch, number: int) -> Trial | None:
    first = sum(not trial.enqueued for trial in search.drawn)
    for index in itertools.islice(itertools.count(first), _REPEATS):
        point = samplers.shared_point(plan, search.stratum, index)
        if plan.point_id(search.stratum, point) not in search.points:
            return add(search, search.study, point, search_seed(plan), number)
    chance = zlib.crc32(f"{samplers.space_key(search.stratum)}:{plan.spec.search.seed}:{first}".encode())
    return _untried(plan, search, chance, number)


def _untried(plan: Plan, search: StratumSearch, chance: int, number: int) -> Trial | None:
    other = samplers.untried(plan, search.stratum, search.points, chance)
    search.exhausted = other is None and samplers.is_small(search.stratum)
    return add(search, search.study, other, search_seed(plan), number) if other is not None else None


def accept(plan: Plan, search: StratumSearch, trial: optuna.trial.Trial, number: int) -> Trial | None:
    """Make a trial of the point that Optuna has drawn. A point that was drawn before ends as FAIL, which no sampler
    sees, and another one is drawn; a small space may have none left."""
    samplers.suggest(trial, search.space)
    params, seed = samplers.decode(search.stratum, trial.params), search_seed(plan)
    if plan.point_id(search.stratum, params) not in search.points:
        trial.set_user_attr("number", number)
        trial.set_user_attr("seed", seed)
        trial.set_user_attr("tags", tags := drawn_tags(search.stratum))
        return Trial(number, search, search.study, trial._trial_id, params, seed, tags=tags, handle=trial)
    trial.set_user_attr("duplicate", True)
    search.study.tell(trial, state=TrialState.FAIL)
    # of the space, not of the study: another name of the sweep must not draw other points
    chance = zlib.crc32(f"{samplers.space_key(search.stratum)}:{plan.spec.search.seed}:{trial.number}".encode())
    return _untried(plan, search, chance, number)


def search_seed(plan: Plan) -> int:
    """Return the seed that searches; the others compare."""
    return plan.spec.seeds[0]


def drawn_tags(stratum: Stratum) -> dict[str, str]:
    """Return the tags of a drawn point: without a choice if it is the only point of its stratum."""
    if stratum.points > 1 or stratum.refine:
        return dict(SEARCH_TAGS)
    return choice_tags({"gap": 0.0, "edge": [], "needed": None, "drawn": 1, "refined": 0, "searched": {}}, 1)


def add(
    search: StratumSearch,
    study: optuna.Study,
    params: dict[str, Scalar],
    seed: int,
    number: int,
    attrs: Mapping[str, Any] | None = None,
    intermediate: Mapping[int, float] | None = None,
    system: Mapping[str, Any] | None = None,
    *,
    replicate: bool = False,
    refinement: tuple[dict[str, Scalar], ...] = (),
    tags: Mapping[str, str] | None = None,
) -> Trial:
    """Add a running trial with known params, with its number, in one record of the journal. `tags`: of its run; null:
    those of a drawn point."""
    tags = drawn_tags(search.stratum) if tags is None else dict(tags)
    known: dict[str, Any] = {"number": number, "seed": seed, "tags": dict(tags)}
    if refinement:
        known["refinement"] = [{name: samplers.encode(value) for name, value in point.items()} for point in refinement]
    try:
        study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params={name: samplers.encode(value) for name, value in params.items()},
                distributions=search.space,
                user_attrs={**known, **(attrs or {})},
                intermediate_values=dict(intermediate or {}),
                system_attrs=dict(system or {}),
            )
        )
    except ValueError as error:
        raise SpecError(f"{search.stratum.id}: {params}: {error}") from None
    trial_id = max(trial._trial_id for trial in study.get_trials(deepcopy=False))
    return Trial(
        number, search, study, trial_id, params, seed, replicate=replicate, refinement=refinement, tags=dict(tags),
        enqueued=bool((attrs or {}).get("enqueued")),
    )  # fmt: skip
