"""The scheduler's state of a trial, in `state.json`: enough to resume after the scheduler itself died.

Every change is written before it goes to Optuna and MLflow, so that this file is never behind them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from saebench.config import TrialConfig
from saebench.errors import UserError
from saebench.runs.durable import write_json
from saebench.runs.events import FailureKind
from saebench.runs.files import DamagedError, Seconds, check_sum, read, sealed
from saebench.runs.paths import EXPORTED_CONFIG, TRIAL_CONFIG, TrialPaths
from saebench.runs.tags import Tag

TrialStateName = Literal["planned", "running", "interrupted", "complete", "pruned", "failed"]
ENDED: frozenset[str] = frozenset({"complete", "pruned", "failed"})


@dataclass
class AttemptRecord:
    """One try at a trial."""

    attempt: int
    slot: str
    device: str
    started: Seconds
    ended: Seconds | None = None
    kind: FailureKind | None = None
    """The kind of failure that ended it, if any."""
    detail: str = ""

    @property
    def seconds(self) -> float:
        return max(0.0, (self.ended or self.started) - self.started)


class Row(NamedTuple):
    """The part of a trial's state from which the number of trials to come is estimated."""

    stratum: str
    seed: int
    state: str
    search: Mapping[str, str]
    """Tags of the search: Tag.REFINED and Tag.CHOICE are read."""


@dataclass
class TrialState:
    """The state of one trial."""

    number: int
    stratum: str
    point: str
    seed: int
    total: int
    """Samples that the trial trains for if it is not stopped."""
    state: TrialStateName = "planned"
    reason: str = ""
    """Reason for this state, in one line."""
    kind: FailureKind | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    forgiven: int = 0
    """Attempts that no longer count against the retries, because the user retried the trial."""
    samples: int = 0
    """Samples of the newest event."""
    judged: int = 0
    """Samples of the newest evaluation that was reported and answered."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """The newest verdict and its numbers: value, threshold, rung, peers, pruner."""
    values: dict[str, float] = field(default_factory=dict)
    """Metrics of the newest evaluation."""
    search: dict[str, str] = field(default_factory=dict)
    """Tags of the trial's run on its role in the search, and for a trial that compares, the choice."""
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and crc32 of the files that a complete trial leaves, by name in its directory."""

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

    def row(self) -> Row:
        """Return the row that is counted, small enough to keep for very many trials."""
        tags = {name: self.search[name] for name in (Tag.REFINED, Tag.CHOICE) if name in self.search}
        return Row(self.stratum, self.seed, self.state, tags)

    def failures(self, kind: FailureKind) -> int:
        """Return how often `kind` has ended an attempt that still counts."""
        return sum(a.kind == kind for a in self.attempts[self.forgiven :])

    def close_attempt(self, kind: FailureKind | None = None, detail: str = "", at: float | None = None) -> None:
        """Record the end of the newest attempt, now or at `at` (seconds since the epoch)."""
        if self.attempts and self.attempts[-1].ended is None:
            last = self.attempts[-1]
            last.ended, last.kind, last.detail = at or time.time(), kind, detail

    def reset_failures(self) -> None:
        """Retry with the count of failures reset; the attempts stay recorded."""
        self.forgiven = len(self.attempts)
        self.state, self.reason, self.kind = "planned", "", None

    def write(self, paths: TrialPaths) -> None:
        """Write state.json; fsync once the trial has ended, because no later event repeats that state."""
        write_json(paths.state, sealed(asdict(self)), durable=self.ended)


_STATE = TypeAdapter(TrialState)
_CONFIG = TypeAdapter(TrialConfig)
_LARGEST = 4 << 20
"""Bytes of a trial's config.json or state.json."""


def load_state(paths: TrialPaths) -> TrialState | None:
    """Return the trial's state; None if it has none yet. Raises DamagedError."""
    with contextlib.suppress(FileNotFoundError):
        state = read(_STATE, paths.state, _LARGEST)
        if state.number != paths.number:
            raise DamagedError(f"{paths.state}: number: {state.number}: is the state of another trial")
        return state
    return None


def load_config(paths: TrialPaths) -> TrialConfig | None:
    """Return the trial's configuration; None if it has none yet. Raises DamagedError."""
    with contextlib.suppress(FileNotFoundError):
        return read(_CONFIG, paths.config, _LARGEST)
    return None


def check_config(paths: TrialPaths) -> None:
    """Raise DamagedError or FileNotFoundError unless config.json is there and as it was written."""
    if not check_sum(paths.config, _LARGEST):
        read(_CONFIG, paths.config, _LARGEST)


def trial_config(folder: str | Path) -> TrialConfig:
    """Return the configuration of the trial in `folder` (runs/NAME/trials/NNNN, or an export of it). Raises
    UserError: no such file, or not what a sweep wrote."""
    for file in (TrialPaths(Path(folder)).config, Path(folder) / EXPORTED_CONFIG):
        with contextlib.suppress(FileNotFoundError):
            return read(_CONFIG, file, _LARGEST)
    raise UserError(f"{folder}: no {TRIAL_CONFIG} or {EXPORTED_CONFIG}: not a trial, nor an export of one")


def write_config(paths: TrialPaths, config: TrialConfig) -> None:
    """Write config.json, before the trial's first attempt."""
    write_json(paths.config, sealed(config.model_dump(mode="json")), durable=False)


def same_trial(one: TrialConfig, other: TrialConfig) -> bool:
    """Return whether both are the same trial. The folders of texts and encoder may differ: a project may be moved."""
    return one == other or _without_folders(one) == _without_folders(other)


def _without_folders(config: TrialConfig) -> dict[str, Any]:
    found = config.model_dump(mode="json")
    data, dataset = found["data"], found["data"]["dataset"]
    files = dataset["data_files"]
    for key in ("model", "embeddings", "texts", "ids", "labels"):
        data[key] = PurePath(data[key]).name if data[key] is not None else None
    dataset["path"] = PurePath(dataset["path"]).name
    dataset["data_files"] = [PurePath(file).name for file in ([files] if isinstance(files, str) else files or ())]
    return found


def read_state(paths: TrialPaths) -> TrialState | None:
    """Return the trial's state, or None if it is missing or unreadable."""
    try:
        return load_state(paths)
    except DamagedError:
        return None


def read_config(paths: TrialPaths) -> TrialConfig | None:
    """Return the trial's configuration, or None if it is missing or unreadable."""
    try:
        return load_config(paths)
    except DamagedError:
        return None
