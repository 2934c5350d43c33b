"""What runs next: one Optuna study per stratum, drawn from in turn, so that like is compared with like.

The other seeds of a point live in a sibling study "<sweep>/<stratum>/replicates": they are no new evidence about a
point to the sampler, no peers to the pruner, they do not count as points, and nothing stops them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from saebench.config import TrialConfig
from saebench.plan import Plan
from saebench.runs.events import FailureKind, Verdict
from saebench.study import pruners, samplers
from saebench.study.draw import accept, add, draw, search_seed
from saebench.study.journal import attach, frozen, open_journal
from saebench.study.stratum_search import End, StratumSearch, Trial, state_of
from saebench.study.studies import Studies

INFEASIBLE: frozenset[str] = frozenset({"cuda_oom", "diverged"})
"""Failures that the point itself causes: the sampler hears of them as a violated constraint. (As FAIL they would be
invisible to TPE, which then proposes the same again and again.)"""


@dataclass(frozen=True)
class Decision:
    """The answer to an evaluation."""

    verdict: Verdict
    numbers: dict[str, Any]
    """pruner, samples, value, threshold, rung, peers: what led to it."""


class Search:
    """All of Optuna. To be opened by one process at a time, and called by one thread."""

    def __init__(self, plan: Plan, storage: Path) -> None:
        """`storage`: Optuna's journal. Raises SpecError, naming what changed, where it was begun with another space."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers.check_sampler(plan)
        self._plan = plan
        self._storage = open_journal(storage)
        self._studies = Studies(plan, self._storage)
        self._trials: dict[int, Trial] = {}
        self._next = 0
        self._pending: deque[tuple[Trial, int]] = deque()
        """Points whose replicate with this seed is to run."""
        self._queued: set[tuple[str, str, int]] = set()
        """(stratum, point, seed) of the replicates that are pending or exist."""
        self._stratum_searches = [self._studies.stratum_search(stratum) for stratum in plan.strata]
        self._load()

    # --- the caller's side ---

    def ask(self) -> TrialConfig | None:
        """The next trial to run; None when there is none now (there may be more once running ones have ended).

        Every stratum gets its points in turn, replicates follow. The trial is in the journal, with its number, when
        this returns.
        """
        with self._storage.together():
            following = self._following()
        return self._config(following) if following is not None else None

    @property
    def done(self) -> bool:
        """Nothing runs and nothing is left to run."""
        waiting = self._pending or any(stratum_search.missing for stratum_search in self._stratum_searches)
        return not waiting and all(trial.state != "running" for trial in self._trials.values())

    def counts(self) -> dict[str, int]:
        """Trials by state. `planned`: those known to come; which replicates follow may depend on running points."""
        found = Counter(trial.state for trial in self._trials.values())
        planned = sum(stratum_search.missing for stratum_search in self._stratum_searches) + len(self._pending)
        return {"planned": planned, **{state: found[state] for state in ("running", "complete", "pruned", "failed")}}

    def running(self) -> list[TrialConfig]:
        """Trials that an earlier scheduler left running, in order of number."""
        return [self._config(t) for _, t in sorted(self._trials.items()) if t.inherited and t.state == "running"]

    def report(self, number: int, samples: int, values: Mapping[str, float]) -> Decision:
        """What a trial measured after `samples` examples, and whether it goes on. Replicates always do, and so does a
        trial at its end. A value that is not finite is not reported: that trial is about to fail as diverged.

        Raises ValueError where the objective is not among the values.
        """
        trial, prune = self._trials[number], self._plan.spec.prune.pruner
        value = self._objective(number, values)
        prune = "none" if trial.replicate else prune
        numbers: dict[str, Any] = {"pruner": prune, "samples": samples, "value": value}
        if not math.isfinite(value) or trial.state != "running":
            return Decision(Verdict.GO, numbers)
        marks = self._plan.marks()
        mark = marks[max(0, bisect_right(marks, samples) - 1)]  # batches may pass a mark by a few examples
        with self._storage.together():
            pruners.report(trial.trial, mark, value, values)
            if mark >= marks[-1] or prune == "none":
                return Decision(Verdict.GO, numbers)
            stop, found = pruners.judge(trial.trial, mark, value)
        return Decision(Verdict.PRUNE if stop else Verdict.GO, numbers | found)

    def tell(
        self,
        number: int,
        state: End,
        values: Mapping[str, float] | None = None,
        kind: FailureKind | None = None,
        numbers: Mapping[str, Any] | None = None,
    ) -> None:
        """How a trial ended; hearing it twice changes nothing. `numbers`: the verdict's, kept beside the trial.

        The caller has made the end durable before it tells it, and tells it again when it finds the trial running: so
        nobody waits for the disk here. A power cut may take it, up to the next `ask`, `report` or `reopen`.
        """
        trial = self._trials[number]
        if trial.state != "running":
            return
        study, handle, values = trial.study, trial.trial, values or {}
        objective = self._objective(number, values) if state == "complete" else math.nan
        if state == "complete" and not math.isfinite(objective):
            state, kind = "failed", "diverged"
        with self._storage.together(durable=False):
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
        self._follow(trial)

    def reopen(self, number: int) -> TrialConfig:
        """A failed trial is tried again, as a new Optuna trial of the same number and params, in place of the old one
        (Optuna's trials end once). Raises ValueError where it has not failed."""
        old = self._trials[number]
        if old.state != "failed":
            raise ValueError(f"trial {number}: is {old.state}; only failed trials can be tried again")
        before = frozen(old.trial)
        rungs = {k: v for k, v in before.system_attrs.items() if k.startswith("completed_rung_")}
        attrs = {k: v for k, v in before.user_attrs.items() if k.startswith("pareto:")}
        # it goes on from its checkpoint, so the marks before that are not measured again
        new = add(
            old.stratum_search,
            old.study,
            old.params,
            old.seed,
            number,
            attrs,
            before.intermediate_values,
            rungs,
            old.replicate,
        )
        self._storage.supersede(old.trial_id, new.trial_id)
        return self._config(self._register(new))

    # --- drawing ---

    def _following(self) -> Trial | None:
        """The next point of the stratum that has fewest, else the next replicate that is due."""
        while (
            stratum_search := min(
                (c for c in self._stratum_searches if c.missing), key=lambda c: len(c.trials), default=None
            )
        ) is not None:
            if (drawn := draw(self._plan, stratum_search, self._next)) is not None:
                return self._register(drawn)
        while self._pending:
            point, seed = self._pending.popleft()
            if point.state != "failed":
                return self._replicate(point, seed)
            self._queued.discard((point.stratum_search.stratum.id, self._point(point), seed))
        return None

    def _replicate(self, point: Trial, seed: int) -> Trial:
        stratum_search = point.stratum_search
        study = self._studies.replicates(stratum_search)
        return self._register(add(stratum_search, study, point.params, seed, self._next, replicate=True))

    def _register(self, trial: Trial) -> Trial:
        self._trials[trial.number] = trial
        self._next = max(self._next, trial.number + 1)
        if trial.replicate:
            self._queued.add((trial.stratum_search.stratum.id, self._point(trial), trial.seed))
        else:
            trial.stratum_search.trials[trial.number] = trial
            trial.stratum_search.points.add(self._point(trial))
            self._follow(trial)
        return trial

    def _follow(self, point: Trial) -> None:
        """Queue the replicates of a point: of every one that may still succeed, or only of those that survived."""
        due = point.state == "complete" or (self._plan.spec.replicate == "all" and point.state != "failed")
        if point.replicate or not due:
            return
        for seed in self._plan.spec.seeds[1:]:
            key = (point.stratum_search.stratum.id, self._point(point), seed)
            if key not in self._queued:
                self._queued.add(key)
                self._pending.append((point, seed))

    # --- what is in the journal ---

    def _load(self) -> None:
        """Every trial of the journal that has a number; then those that a crash left without one."""
        unnumbered: list[tuple[StratumSearch, FrozenTrial]] = []
        found: list[Trial] = []
        for stratum_search in self._stratum_searches:
            for study in filter(None, (stratum_search.study, stratum_search.replicates)):
                for past in study.get_trials(deepcopy=False):
                    if "number" in past.user_attrs:
                        found.append(self._known_trial(stratum_search, study, past))
                    elif past.state == TrialState.RUNNING:
                        unnumbered.append((stratum_search, past))
        # replicates first, so that none is queued that is there; of the trials of one number the newest counts
        for trial in sorted(found, key=lambda t: (not t.replicate, t.number, t.trial_id)):
            if (older := self._trials.get(trial.number)) is not None:
                self._storage.supersede(older.trial_id, trial.trial_id)
            self._register(trial)
        for stratum_search, past in unnumbered:
            # nobody has seen it yet: it gets what it lacks, and is a trial like any other
            asked = attach(
                stratum_search.study, past._trial_id
            )  # its number as the study counts, without superseded trials
            stratum_search.study.sampler = samplers.make_sampler(
                self._plan.spec.search, stratum_search.study.study_name, asked.number
            )
            adopted = accept(self._plan, stratum_search, asked, self._next)
            if adopted is not None:
                self._register(adopted).inherited = True

    def _known_trial(self, stratum_search: StratumSearch, study: optuna.Study, frozen: FrozenTrial) -> Trial:
        return Trial(
            frozen.user_attrs["number"],
            stratum_search,
            study,
            frozen._trial_id,
            samplers.decode(stratum_search.stratum, frozen.params),
            frozen.user_attrs.get("seed", search_seed(self._plan)),
            state_of(frozen),
            study is stratum_search.replicates,
            inherited=True,
        )

    def _config(self, trial: Trial) -> TrialConfig:
        return self._plan.trial(trial.stratum_search.stratum, trial.params, trial.seed, trial.number)

    def _point(self, trial: Trial) -> str:
        return self._plan.point_id(trial.stratum_search.stratum, trial.params)

    def _objective(self, number: int, values: Mapping[str, float]) -> float:
        key = self._plan.spec.search.objective
        if key not in values:
            raise ValueError(f"trial {number}: search.objective: {key}: not measured; there are: {_names(values)}")
        return float(values[key])


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _names(values: Iterable[str]) -> str:
    return ", ".join(sorted(values)) or "none"
