"""What runs next: one Optuna study per stratum, so that like is compared with like.

The first seed searches: points are drawn, in turn for all strata and at the same settings in all, then refined around
the best one, then one point is chosen. The other seeds measure that point alone. They live in a sibling study
"<sweep>/<stratum>/replicates": no new evidence about a point to the sampler, no peers to the pruner, no points that
count, and nothing stops them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from saebench.config import TrialConfig
from saebench.forecast import trials_left
from saebench.plan import Plan
from saebench.runs.events import FailureKind, Verdict
from saebench.runs.state import Row
from saebench.runs.tags import Tag
from saebench.spec import Scalar
from saebench.study import pruners, samplers
from saebench.study.comparisons import COMPARE_TAGS, Comparisons
from saebench.study.database import Database
from saebench.study.draw import SEARCH_TAGS, accept, add, draw, search_seed
from saebench.study.journal import UNREADABLE, attach, frozen, open_journal, set_journal_aside
from saebench.study.recorded import planned_params, recorded_trials, resume_round
from saebench.study.refine import propose
from saebench.study.stratum_search import End, StratumSearch, Trial
from saebench.study.studies import Studies

REFINED_TAGS = {**SEARCH_TAGS, Tag.REFINED: "1"}
INFEASIBLE: frozenset[str] = frozenset({"cuda_oom", "diverged", "collapsed"})
"""Failures that the point itself causes: the sampler hears of them as a violated constraint. (As FAIL they would be
invisible to TPE, which then proposes the same again and again.)"""


@dataclass(frozen=True)
class Decision:
    """The answer to an evaluation."""

    verdict: Verdict
    numbers: dict[str, Any]
    """pruner, samples, value, threshold, rung, peers: what led to it."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended, as the journal has it."""

    state: End
    values: dict[str, float]
    """Metrics at its end."""
    kind: FailureKind | None
    verdict: dict[str, Any]


class Search:
    """All of Optuna. To be opened by one process at a time, and called by one thread."""

    def __init__(self, plan: Plan, storage: Path | Database) -> None:
        """`storage`: of Optuna's journal, a file or a database. Raises SpecError, naming what changed, if it was begun
        with another space."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers.check_sampler(plan)
        self._plan = plan
        self._trials: dict[int, Trial] = {}
        self._next = 0
        self._searches: list[StratumSearch] = []
        try:
            self._open(storage)
        except UNREADABLE:  # whole records that are not those of this program
            set_journal_aside(storage)
            self._trials, self._next = {}, 0
            self._open(storage)

    def _open(self, storage: Path | Database) -> None:
        self._storage = open_journal(storage)
        self._studies = Studies(self._plan, self._storage)
        self._searches = [self._studies.stratum_search(stratum) for stratum in self._plan.strata]
        self._comparisons = Comparisons(self._plan, self._searches)
        self._load()

    # --- the caller's side ---

    def ask(self) -> TrialConfig | None:
        """The next trial to run; None when there is none now (there may be more once running ones have ended).

        Every stratum gets its points in turn; where they have ended, refinements follow, then the other seeds of what
        was chosen. The trial is in the journal, with its number, after the next `commit`.
        """
        with self._storage.group():
            following = self._following()
        return self._config(following) if following is not None else None

    def commit(self) -> None:
        """Make durable what `ask`, `report` and `tell` have recorded so far."""
        self._storage.commit()

    def close(self) -> None:
        """Give back what the journal holds open; to be called once, at the end."""
        self._storage.close()

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to run."""
        if any(trial.state == "running" for trial in self._trials.values()):
            return False
        for search in self._searches:
            self._refine_or_choose(search)
        return not self._comparisons and not any(s.searching for s in self._searches)

    def counts(self) -> dict[str, int]:
        """Return trials by state. `planned`: those known to come; what follows depends on running points."""
        found = Counter(trial.state for trial in self._trials.values())
        planned = sum(s.missing + len(s.proposals) for s in self._searches) + len(self._comparisons)
        return {"planned": planned, **{state: found[state] for state in ("running", "complete", "pruned", "failed")}}

    def running(self) -> list[TrialConfig]:
        """Trials that an earlier scheduler left running, in order of number."""
        return [self._config(t) for _, t in sorted(self._trials.items()) if t.inherited and t.state == "running"]

    def report(self, number: int, samples: int, values: Mapping[str, float]) -> Decision:
        """Report what a trial measured after `samples` examples; return whether to prune it. Trials that compare or
        refine are never pruned, nor is a trial at its end. A value that is not finite is not reported: that trial is
        about to fail as diverged. A mark in the journal is not judged again: whether it pruned is recorded with it.

        Durable after the next `commit`. Raises ValueError where the objective is not among the values.
        """
        trial, prune = self._trials[number], self._plan.spec.prune.pruner
        value = self._objective(number, values)
        prune = "none" if trial.replicate or trial.refinement else prune
        numbers: dict[str, Any] = {"pruner": prune, "samples": samples, "value": value}
        if not math.isfinite(value) or trial.state != "running":
            return Decision(Verdict.GO, numbers)
        marks = self._plan.marks()
        mark = marks[max(0, bisect_right(marks, samples) - 1)]  # batches may pass a mark by a few examples
        past = frozen(trial.trial)
        if mark in past.intermediate_values:
            return _recorded(past, samples, numbers)
        with self._storage.group():
            pruners.report(trial.trial, mark, value, values)
            if mark >= marks[-1] or prune == "none":
                return Decision(Verdict.GO, numbers)
            stop, found = pruners.judge(trial.trial, mark, value)
            numbers |= found
            if stop:
                trial.trial.set_user_attr("verdict", {"verdict": Verdict.PRUNE.value, **numbers})
        return Decision(Verdict.PRUNE if stop else Verdict.GO, numbers)

    def tell(
        self,
        number: int,
        state: End,
        values: Mapping[str, float] | None = None,
        kind: FailureKind | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """Record how a trial ended; a second time it changes nothing. `numbers`: the verdict's, kept beside the trial.

        The caller has made the end durable before, and repeats this call if it finds the trial running at a later
        start: so this needs no `commit`.
        """
        trial = self._trials[number]
        if trial.state != "running":
            return
        study, handle, values = trial.study, trial.trial, values or {}
        objective = self._objective(number, values) if state == "complete" else math.nan
        if state == "complete" and not math.isfinite(objective):
            state, kind = "failed", "diverged"
        with self._storage.group():
            for key, said in (("kind", kind), ("verdict", numbers), ("values", _finite(values))):
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
        """Begin a round of refinement or make the choice, once all of the stratum's points have ended."""
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

    # --- what is in the journal ---

    def _load(self) -> None:
        """Every trial of the journal that has a number; then those that a crash left without one."""
        found, unnumbered = recorded_trials(self._plan, self._searches)
        for trial in found:  # of the trials of one number the newest counts
            if (older := self._trials.get(trial.number)) is not None:
                self._storage.supersede(older.trial_id, trial.trial_id)
            self._register(trial)
        for search, past in unnumbered:
            # no caller has seen it yet: it gets what it lacks, and is a trial like any other
            asked = attach(search.study, past._trial_id)  # its number as the study counts, without superseded trials
            search.study.sampler = samplers.make_sampler(self._plan.spec.search, search.stratum, asked.number)
            adopted = accept(self._plan, search, asked, self._next)
            if adopted is not None:
                self._register(adopted).inherited = True
        for search in self._searches:
            resume_round(self._plan, search)

    def restore(self, config: TrialConfig, tags: Mapping[str, str], evals: Mapping[int, Mapping[str, float]]) -> bool:
        """Add a trial that the journal has lost, from what is in its directory: the configuration, the tags of its run,
        and what it measured at its marks. The caller reports its end with `tell`. False if this plan has no
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

    # --- what is known of a trial ---

    def tags(self, number: int) -> dict[str, str]:
        """Return the tags of a trial's run that say what it is to the search."""
        return dict(self._trials[number].tags)

    def numbers(self) -> list[int]:
        """Return the numbers of all trials."""
        return sorted(self._trials)

    def config(self, number: int) -> TrialConfig | None:
        """Return the configuration of a trial; None if there is no trial of that number."""
        return self._config(self._trials[number]) if number in self._trials else None

    def ended(self, number: int) -> Ended | None:
        """Return how a trial ended, as the journal has it; None if it has not."""
        trial = self._trials[number]
        if trial.state == "running":
            return None
        attrs = frozen(trial.trial).user_attrs
        return Ended(trial.state, dict(attrs.get("values", {})), attrs.get("kind"), dict(attrs.get("verdict", {})))

    def left(self) -> int:
        """Return how many trials are still to begin, as far as can be foreseen."""
        return trials_left(self._plan, map(_row, self._trials.values()))

    def _config(self, trial: Trial) -> TrialConfig:
        return self._plan.trial(trial.stratum_search.stratum, trial.params, trial.seed, trial.number)

    def _point(self, trial: Trial) -> str:
        return self._plan.point_id(trial.stratum_search.stratum, trial.params)

    def _objective(self, number: int, values: Mapping[str, float]) -> float:
        key = self._plan.spec.search.objective
        if key not in values:
            raise ValueError(f"trial {number}: search.objective: {key}: not measured; there are: {_names(values)}")
        return float(values[key])


def _recorded(past: FrozenTrial, samples: int, numbers: dict[str, Any]) -> Decision:
    """Return the decision on a mark that is in the journal."""
    verdict = past.user_attrs.get("verdict", {})
    if verdict.get("verdict") != Verdict.PRUNE or verdict.get("samples") != samples:
        return Decision(Verdict.GO, numbers)
    return Decision(Verdict.PRUNE, {key: value for key, value in verdict.items() if key != "verdict"})


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _names(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or "none"


def _tried(search: StratumSearch) -> int:
    return len(search.trials)


def _row(trial: Trial) -> Row:
    return Row(trial.stratum_search.stratum.id, trial.seed, trial.state, trial.tags)
