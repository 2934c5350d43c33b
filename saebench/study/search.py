"""What runs next: one Optuna study per stratum, so that like is compared with like.

The first seed searches: points are drawn, in turn for all strata and at the same settings in all, then refined around
the best one, then one point is chosen. The other seeds measure that point alone. They live in a sibling study
"<sweep>/<stratum>/replicates": no new evidence about a point to the sampler, no peers to the pruner, no points that
count, and they are never pruned.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

from saebench.config import TrialConfig
from saebench.forecast import trials_left
from saebench.plan import Plan
from saebench.runs.events import FailureKind
from saebench.runs.state import Row
from saebench.runs.tags import Tag
from saebench.spec import Scalar
from saebench.study import samplers
from saebench.study.comparisons import COMPARE_TAGS, Comparisons
from saebench.study.database import Database
from saebench.study.draw import SEARCH_TAGS, accept, add, draw, search_seed
from saebench.study.journal import UNREADABLE, attach, frozen, open_journal, set_journal_aside
from saebench.study.outcomes import Decision, Ended, judge_mark, record_end, recorded_end
from saebench.study.recorded import planned_params, recorded_trials, resume_round
from saebench.study.refine import propose
from saebench.study.stratum_search import End, StratumSearch, Trial
from saebench.study.studies import Studies

REFINED_TAGS = {**SEARCH_TAGS, Tag.REFINED: "1"}


class Search:
    """All of Optuna. Opened by one process at a time, and called by one thread."""

    def __init__(self, plan: Plan, storage: Path | Database) -> None:
        """`storage`: Optuna's journal, a file or a database. Raises SpecError, naming what changed, if the journal was
        started with another search space."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers.check_sampler(plan)
        self._plan = plan
        self._trials: dict[int, Trial] = {}
        self._next = 0
        self._searches: list[StratumSearch] = []
        try:
            self._open(storage)
        except UNREADABLE:  # complete records that another program wrote
            set_journal_aside(storage)
            self._trials, self._next = {}, 0
            self._open(storage)

    def _open(self, storage: Path | Database) -> None:
        self._storage = open_journal(storage)
        self._studies = Studies(self._plan, self._storage)
        self._searches = [self._studies.stratum_search(stratum) for stratum in self._plan.strata]
        self._comparisons = Comparisons(self._plan, self._searches)
        self._load()

    # --- what the scheduler calls ---

    def ask(self) -> TrialConfig | None:
        """Return the next trial to run; None if no trial can start now (more may follow once others have ended).

        Every stratum gets its points in turn; once they have ended, refinements follow, then the other seeds of the
        chosen point. The trial is in the journal, with its number, after the next `commit`.
        """
        with self._storage.group():
            following = self._following()
        return self._config(following) if following is not None else None

    def commit(self) -> None:
        """Make durable what `ask`, `report` and `tell` have recorded so far."""
        self._storage.commit()

    def close(self) -> None:
        """Close the journal's file or connection. Call it once, at the end."""
        self._storage.close()

    @property
    def done(self) -> bool:
        """True if no trial runs and none is left to run."""
        if any(trial.state == "running" for trial in self._trials.values()):
            return False
        for search in self._searches:
            self._refine_or_choose(search)
        return not self._comparisons and not any(s.searching for s in self._searches)

    def counts(self) -> dict[str, int]:
        """Return the number of trials by state. `planned`: those known to follow; running points may add more."""
        found = Counter(trial.state for trial in self._trials.values())
        planned = sum(s.missing + len(s.proposals) for s in self._searches) + len(self._comparisons)
        return {"planned": planned, **{state: found[state] for state in ("running", "complete", "pruned", "failed")}}

    def running(self) -> list[TrialConfig]:
        """Return the trials that an earlier scheduler left running, by number."""
        return [self._config(t) for _, t in sorted(self._trials.items()) if t.inherited and t.state == "running"]

    def report(self, number: int, samples: int, values: Mapping[str, float]) -> Decision:
        """Report what a trial measured after `samples` examples; return whether to prune it. Trials that compare or
        refine are never pruned, nor is a trial at its end. A value that is not finite is not reported: that trial is
        about to fail as diverged. A mark that is in the journal is not judged again: the decision is recorded with it.

        Durable after the next `commit`. Raises ValueError if the objective is not among the values.
        """
        with self._storage.group():
            return judge_mark(self._plan, self._trials[number], samples, values)

    def tell(
        self,
        number: int,
        state: End,
        values: Mapping[str, float] | None = None,
        kind: FailureKind | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a trial ended; a second call changes nothing. `numbers`: those of the decision to prune it.

        No `commit` is needed: the caller has written the end to disk before, and repeats this call at the next start
        if the journal has the trial as running.
        """
        trial = self._trials[number]
        if trial.state != "running":
            return
        with self._storage.group():
            record_end(self._plan, trial, state, values or {}, kind, numbers)
        trial.stratum_search.choice_made = False

    def reopen(self, number: int) -> TrialConfig:
        """Retry a failed trial, as a new Optuna trial of the same number and params in place of the old one (Optuna's
        trials end once). Raises ValueError if it has not failed."""
        old = self._trials[number]
        if old.state != "failed":
            raise ValueError(f"trial {number}: is {old.state}; only failed trials can be retried")
        before = frozen(old.trial)
        rungs = {k: v for k, v in before.system_attrs.items() if k.startswith("completed_rung_")}
        attrs = {k: v for k, v in before.user_attrs.items() if k.startswith("pareto:")}
        # it resumes from its checkpoint, so the marks before that are not measured again
        new = add(
            old.stratum_search,
            old.study,
            old.params,
            old.seed,
            number,
            attrs,
            before.intermediate_values,
            rungs,
            replicate=old.replicate,
            refinement=old.refinement,
            tags=old.tags,
        )
        self._storage.supersede(old.trial_id, new.trial_id)
        return self._config(self._register(new))

    # --- drawing ---

    def _following(self) -> Trial | None:
        """Add the next trial: a point of the stratum that has fewest, else a refinement, else a seed that compares."""
        while (short := min((s for s in self._searches if s.missing), key=_tried, default=None)) is not None:
            if (drawn := draw(self._plan, short, self._next)) is not None:
                return self._register(drawn)
        for search in self._searches:
            self._refine_or_choose(search)
        for search in self._searches:
            if search.proposals:
                params, whole = search.proposals.popleft()
                return self._register(self._add(search, search.study, params, refinement=whole, tags=REFINED_TAGS))
        following = self._comparisons.pop()
        return self._compare(*following) if following is not None else None

    def _add(self, search: StratumSearch, study: optuna.Study, params: dict[str, Scalar], **more: Any) -> Trial:
        return add(search, study, params, search_seed(self._plan), self._next, **more)

    def _refine_or_choose(self, search: StratumSearch) -> None:
        """Start a round of refinement or choose a point, once all points of the stratum have ended."""
        if search.choice_made or search.searching:
            return
        if whole := propose(self._plan, search):
            search.proposals.extend((params, whole) for params in whole)
            return
        search.choice_made = True
        self._comparisons.choose(search)

    def _compare(self, point: Trial, seed: int, tags: dict[str, str]) -> Trial:
        search = point.stratum_search
        study = self._studies.replicates(search)
        return self._register(add(search, study, point.params, seed, self._next, replicate=True, tags=tags))

    def _register(self, trial: Trial) -> Trial:
        search = trial.stratum_search
        self._trials[trial.number] = trial
        self._next = max(self._next, trial.number + 1)
        if trial.replicate:
            search.compared[trial.number] = trial
        else:
            search.trials[trial.number] = trial
            search.points.add(self._point(trial))
            search.choice_made = False
        return trial

    # --- reading the journal ---

    def _load(self) -> None:
        """Register every trial of the journal that has a number, then those that a crash left without one."""
        found, unnumbered = recorded_trials(self._plan, self._searches)
        for trial in found:  # of the trials of one number the newest counts
            if (older := self._trials.get(trial.number)) is not None:
                self._storage.supersede(older.trial_id, trial.trial_id)
            self._register(trial)
        for search, past in unnumbered:
            # no caller has seen it yet: it gets the attributes that it lacks, then it is a trial like any other
            asked = attach(search.study, past._trial_id)  # its number as the study counts, without superseded trials
            search.study.sampler = samplers.make_sampler(self._plan.spec.search, search.stratum, asked.number)
            adopted = accept(self._plan, search, asked, self._next)
            if adopted is not None:
                self._register(adopted).inherited = True
        for search in self._searches:
            resume_round(self._plan, search)

    def restore(self, config: TrialConfig, tags: Mapping[str, str], evals: Mapping[int, Mapping[str, float]]) -> bool:
        """Add a trial that the journal has lost, from the files in its directory: its configuration, the tags of its
        run, and its metrics at its marks. The caller reports its end with `tell`. False if this plan has no
        such trial."""
        search = next((s for s in self._searches if s.stratum.id == config.stratum), None)
        params = None if search is None else planned_params(self._plan, search, config)
        if search is None or params is None or config.number in self._trials:
            return False
        replicate = config.seed != search_seed(self._plan)
        study = self._studies.replicates(search) if replicate else search.study
        key = self._plan.spec.search.objective
        marks = {samples: float(values[key]) for samples, values in evals.items() if key in values}
        refinement = (params,) if Tag.REFINED in tags else ()
        with self._storage.group():
            trial = add(
                search, study, params, config.seed, config.number, None, marks, replicate=replicate,
                refinement=refinement, tags=tags or (COMPARE_TAGS if replicate else SEARCH_TAGS),
            )  # fmt: skip
        self._register(trial).inherited = True
        return True

    # --- one trial ---

    def tags(self, number: int) -> dict[str, str]:
        """Return the tags of a trial's run that state its role in the search."""
        return dict(self._trials[number].tags)

    def numbers(self) -> list[int]:
        """Return the numbers of all trials."""
        return sorted(self._trials)

    def config(self, number: int) -> TrialConfig | None:
        """Return the configuration of a trial; None if there is no trial of that number."""
        return self._config(self._trials[number]) if number in self._trials else None

    def ended(self, number: int) -> Ended | None:
        """Return how a trial ended, as the journal has it; None if it has not."""
        return recorded_end(self._trials[number])

    def left(self) -> int:
        """Return how many trials are still to start, as far as is known."""
        return trials_left(self._plan, map(_row, self._trials.values()))

    def _config(self, trial: Trial) -> TrialConfig:
        return self._plan.trial(trial.stratum_search.stratum, trial.params, trial.seed, trial.number)

    def _point(self, trial: Trial) -> str:
        return self._plan.point_id(trial.stratum_search.stratum, trial.params)


def _tried(search: StratumSearch) -> int:
    return len(search.trials)


def _row(trial: Trial) -> Row:
    return Row(trial.stratum_search.stratum.id, trial.seed, trial.state, trial.tags)
