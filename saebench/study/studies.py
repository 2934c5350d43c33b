"""The Optuna studies of a sweep: created, or found in the journal and compared with the plan."""

from __future__ import annotations

import json
from dataclasses import asdict

import optuna

from saebench.errors import SpecError
from saebench.plan import Plan, Stratum
from saebench.spec import Range
from saebench.study import pruners, samplers
from saebench.study.journal import Journal
from saebench.study.stratum_search import StratumSearch


class Studies:
    """One study per stratum, and a sibling "<sweep>/<stratum>/replicates" once there are any."""

    def __init__(self, plan: Plan, storage: Journal) -> None:
        """Raises SpecError if the journal has trials of a stratum that the plan lacks."""
        self._plan, self._storage = plan, storage
        self._known = {study.study_name for study in storage.get_all_studies()}
        self._refuse_lost_strata()

    def stratum_search(self, stratum: Stratum) -> StratumSearch:
        """Return the search of a stratum. Raises SpecError, naming the change, if it was started with another space."""
        name = f"{self._plan.spec.name}/{stratum.id}"
        study = self._study(name, pruners.make_pruner(self._plan, stratum))
        self._check_unchanged(study, stratum)
        space = samplers.distributions(stratum)
        again = f"{name}/replicates"
        replicates = self._study(again, optuna.pruners.NopPruner()) if again in self._known else None
        return StratumSearch(stratum, study, space, self._plan.enqueued(stratum), replicates)

    def replicates(self, stratum_search: StratumSearch) -> optuna.Study:
        """The stratum's study of replicates."""
        if stratum_search.replicates is None:
            stratum_search.replicates = self._study(
                f"{stratum_search.study.study_name}/replicates", optuna.pruners.NopPruner()
            )
        return stratum_search.replicates

    def _study(self, name: str, pruner: optuna.pruners.BasePruner) -> optuna.Study:
        sampler = optuna.samplers.RandomSampler()  # replaced before anything is drawn
        if name in self._known:
            return optuna.load_study(study_name=name, storage=self._storage, sampler=sampler, pruner=pruner)
        direction = self._plan.spec.search.direction
        return optuna.create_study(
            study_name=name, storage=self._storage, sampler=sampler, pruner=pruner, direction=direction
        )

    def _check_unchanged(self, study: optuna.Study, stratum: Stratum) -> None:
        """Check that a study has the plan's space and objective; raise SpecError that names the change."""
        search = self._plan.spec.search
        now = {"objective": search.objective, "direction": search.direction, **stratum.fixed, **stratum.space}
        now = json.loads(json.dumps({k: asdict(v) if isinstance(v, Range) else v for k, v in now.items()}))
        begun = study.user_attrs.get("space")
        if begun is None:
            study.set_user_attr("space", now)
            return
        for name in [*begun, *(name for name in now if name not in begun)]:
            if begun.get(name) != now.get(name):
                raise SpecError(
                    f"{stratum.id}: {name}: was {json.dumps(begun.get(name))} when the sweep began and is "
                    f"{json.dumps(now.get(name))} now; such trials cannot be compared: give the sweep another name"
                )

    def _refuse_lost_strata(self) -> None:
        there = {f"{self._plan.spec.name}/{stratum.id}" for stratum in self._plan.strata}
        for name in sorted(self._known):
            base = name.removesuffix("/replicates")
            if base not in there and optuna.load_study(study_name=name, storage=self._storage).get_trials(False):
                raise SpecError(
                    f"{base}: the sweep has trials of this stratum, which the spec no longer has; restore it, or give "
                    "the sweep another name"
                )
