"""What the scheduler knows of a trial, in `state.json`: enough to go on after the scheduler itself died.

Every change is written before Optuna and MLflow hear of it, so that this file is never behind them.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from saebench.config import TrialConfig
from saebench.runs.durable import write_json
from saebench.runs.events import FailureKind
from saebench.runs.paths import TrialPaths

TrialStateName = Literal["planned", "running", "interrupted", "complete", "pruned", "failed"]
ENDED: frozenset[str] = frozenset({"complete", "pruned", "failed"})


@dataclass
class AttemptRecord:
    """One try at a trial."""

    attempt: int
    slot: str
    device: str
    started: float
    """Seconds since the epoch."""
    ended: float | None = None
    kind: FailureKind | None = None
    """What ended it, if that was a failure."""
    detail: str = ""

    @property
    def seconds(self) -> float:
        return max(0.0, (self.ended or self.started) - self.started)


@dataclass
class TrialState:
    """One trial as the scheduler sees it."""

    number: int
    stratum: str
    point: str
    seed: int
    total: int
    """Samples the trial trains for if nobody stops it."""
    state: TrialStateName = "planned"
    reason: str = ""
    """Why it is in this state, in one line."""
    kind: FailureKind | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    forgiven: int = 0
    """Attempts that no longer count against the retries: somebody asked for the trial to be tried again."""
    samples: int = 0
    """Samples of the newest event."""
    judged: int = 0
    """Samples of the newest evaluation that was reported and answered."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """The newest verdict and its numbers: value, threshold, rung, peers, pruner."""
    values: dict[str, float] = field(default_factory=dict)
    """Metrics of the newest evaluation."""

    @classmethod
    def of(cls, config: TrialConfig) -> TrialState:
        return cls(config.number, config.stratum, config.point, config.seed, config.train.samples)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def seconds(self) -> float:
        """Seconds trained, over all attempts that have ended."""
        return sum(a.seconds for a in self.attempts)

    def failures(self, kind: FailureKind) -> int:
        """How often `kind` has ended an attempt that still counts."""
        return sum(a.kind == kind for a in self.attempts[self.forgiven :])

    def close_attempt(self, kind: FailureKind | None = None, detail: str = "", at: float | None = None) -> None:
        """The newest attempt is over, now or at `at` (seconds since the epoch)."""
        if self.attempts and self.attempts[-1].ended is None:
            last = self.attempts[-1]
            last.ended, last.kind, last.detail = at or time.time(), kind, detail

    def forgive(self) -> None:
        """Try again as if nothing had happened; what happened stays on record."""
        self.forgiven = len(self.attempts)
        self.state, self.reason, self.kind = "planned", "", None

    def write(self, paths: TrialPaths) -> None:
        """Durably where the trial has ended: nobody would find that out again. Up to there the events tell."""
        write_json(paths.state, asdict(self), durable=self.ended)


def read_state(paths: TrialPaths) -> TrialState | None:
    """The trial's state; None where there is none yet or the file cannot be understood."""
    try:
        found = json.loads(paths.state.read_text("utf-8"))
        attempts = [AttemptRecord(**a) for a in found.pop("attempts")]
        return TrialState(**found, attempts=attempts)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_config(paths: TrialPaths) -> TrialConfig | None:
    """The trial's configuration; None where the file is missing or not whole."""
    try:
        return TrialConfig.model_validate_json(paths.config.read_text("utf-8"))
    except (OSError, ValueError):
        return None
