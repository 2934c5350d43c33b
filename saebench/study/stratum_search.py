"""A stratum at work, and its trials as the search remembers them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState

from saebench.plan import Stratum
from saebench.spec import Scalar
from saebench.study.journal import attach

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
    inherited: bool = False
    """Asked for by a scheduler that is gone."""
    handle: optuna.trial.Trial | None = None

    @property
    def trial(self) -> optuna.trial.Trial:
        if self.handle is None:
            self.handle = attach(self.study, self.trial_id)
        return self.handle


@dataclass
class StratumSearch:
    """A stratum at work."""

    stratum: Stratum
    study: optuna.Study
    space: dict[str, optuna.distributions.BaseDistribution]
    enqueued: tuple[dict[str, Scalar], ...]
    replicates: optuna.Study | None = None
    trials: dict[int, Trial] = field(default_factory=dict)
    """Of the search, without replicates."""
    points: set[str] = field(default_factory=set)
    """Ids of the points drawn."""
    exhausted: bool = False
    """A finite space of which every point is drawn."""

    @property
    def extra(self) -> int:
        """How many failed points are replaced by others; none where there is nothing else to draw (a failed point of a
        grid stays open for a retry)."""
        return max(1, self.stratum.points // 4) if self.space and self.stratum.grid is None else 0

    @property
    def missing(self) -> int:
        """Points still to draw."""
        failed = sum(trial.state == "failed" for trial in self.trials.values())
        return 0 if self.exhausted else max(0, self.stratum.points + min(failed, self.extra) - len(self.trials))


def state_of(frozen: FrozenTrial) -> Literal["running"] | End:
    if frozen.state == TrialState.COMPLETE:
        return "complete"
    if frozen.state == TrialState.PRUNED:
        return "failed" if "kind" in frozen.user_attrs else "pruned"
    return "failed" if frozen.state == TrialState.FAIL else "running"
