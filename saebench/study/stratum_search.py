"""The state of one stratum's search, and its trials."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from saebench.plan import Stratum
from saebench.spec import Scalar
from saebench.study.journal import attach
from saebench.study.samplers import decode

End = Literal["complete", "pruned", "failed"]


@dataclass
class Trial:
    number: int
    stratum_search: StratumSearch
    study: optuna.Study
    trial_id: int
    params: dict[str, Scalar]
    seed: int
    state: Literal["running"] | End = "running"
    replicate: bool = False
    """One of the seeds that compare: it measures a point that the first seed has chosen."""
    refinement: tuple[dict[str, Scalar], ...] = ()
    """All points of the round of refinement that this one belongs to; empty for a drawn point."""
    tags: dict[str, str] = field(default_factory=dict)
    """Tags of its run: role, and what is known about the choice."""
    enqueued: bool = False
    """A point of search.enqueue."""
    value: float | None = None
    """Objective at the end of a complete trial."""
    inherited: bool = False
    """Asked for by an earlier scheduler."""
    handle: optuna.trial.Trial | None = None

    @property
    def trial(self) -> optuna.trial.Trial:
        if self.handle is None:
            self.handle = attach(self.study, self.trial_id)
        return self.handle


@dataclass
class StratumSearch:
    """One stratum: points are drawn, then refined around the best one, then one is chosen."""

    stratum: Stratum
    study: optuna.Study
    space: dict[str, optuna.distributions.BaseDistribution]
    enqueued: tuple[dict[str, Scalar], ...]
    replicates: optuna.Study | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    """Of the first seed."""
    compared: dict[int, Trial] = field(default_factory=dict)
    """Of the other seeds."""
    points: set[str] = field(default_factory=set)
    """Ids of the points drawn."""
    exhausted: bool = False
    """Every point of a finite space is drawn."""
    proposals: deque[tuple[dict[str, Scalar], tuple[dict[str, Scalar], ...]]] = field(default_factory=deque)
    """Points of the current round of refinement that are still to run, each with its round."""
    choice_made: bool = False
    """A choice was made, and nothing has changed since."""

    @property
    def drawn(self) -> list[Trial]:
        """Trials of drawn points, by number."""
        return [trial for _, trial in sorted(self.trials.items()) if not trial.refinement]

    @property
    def refined(self) -> int:
        """How many points were refined."""
        return sum(bool(trial.refinement) for trial in self.trials.values())

    @property
    def extra(self) -> int:
        """How many failed points are replaced by others; none if nothing else can be drawn (a failed point of a grid
        stays open for a retry)."""
        return max(1, self.stratum.points // 4) if self.space and self.stratum.grid is None else 0

    @property
    def missing(self) -> int:
        """Points still to draw."""
        drawn = self.drawn
        failed = sum(trial.state == "failed" for trial in drawn)
        return 0 if self.exhausted else max(0, self.stratum.points + min(failed, self.extra) - len(drawn))

    @property
    def searching(self) -> bool:
        """Whether a trial of the first seed runs or is still to come."""
        running = any(trial.state == "running" for trial in self.trials.values())
        return bool(self.missing or self.proposals) or running

    def candidates(self) -> list[Trial]:
        """Trials whose point may be chosen: complete ones, of at most as many drawn points as the stratum was given (a
        failed point that was replaced and came back makes the stratum no richer than others)."""
        drawn = [trial for trial in self.drawn if trial.state in ("complete", "pruned")][: self.stratum.points]
        refined = [trial for _, trial in sorted(self.trials.items()) if trial.refinement]
        return [trial for trial in (*drawn, *refined) if trial.state == "complete" and trial.value is not None]


def state_of(frozen: FrozenTrial) -> Literal["running"] | End:
    if frozen.state == TrialState.COMPLETE:
        return "complete"
    if frozen.state == TrialState.PRUNED:
        return "failed" if "kind" in frozen.user_attrs else "pruned"
    return "failed" if frozen.state == TrialState.FAIL else "running"


def known_trial(stratum_search: StratumSearch, study: optuna.Study, frozen: FrozenTrial, seed: int) -> Trial:
    """Return a trial that is in the journal. `seed`: for trials whose record has none."""
    attrs: Mapping[str, Any] = frozen.user_attrs
    return Trial(
        attrs["number"],
        stratum_search,
        study,
        frozen._trial_id,
        decode(stratum_search.stratum, frozen.params),
        attrs.get("seed", seed),
        state_of(frozen),
        replicate=study is stratum_search.replicates,
        refinement=tuple(decode(stratum_search.stratum, point) for point in attrs.get("refinement", ())),
        tags=dict(attrs.get("tags", {})),
        value=frozen.value if frozen.state == TrialState.COMPLETE else None,
        enqueued=bool(attrs.get("enqueued")),
        inherited=True,
    )
