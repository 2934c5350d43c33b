"""`tracking.json`: which runs belong to the sweep and how much of every trial the server has acknowledged."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.runs.durable import write_text
from saebench.runs.paths import LOCK
from saebench.tracking.address import sqlite_file

_EVERY = 1.0
"""Seconds between two writes of the file; after a crash an old offset sends some points twice and loses none."""


@dataclass
class Sent:
    """What the server has acknowledged of one trial."""

    run_id: str = ""
    offset: int = 0
    """Bytes of events.jsonl that the server has acknowledged."""
    described: bool = False
    """Params and dataset are logged."""
    closed: str | None = None
    """State with which the run was closed; None while it is open."""
    sae: bool = False
    """The SAE has been copied."""
    refused: str | None = None
    """Why the server rejects this trial for good (for example, a user deleted the run)."""
    nonfinite: dict[str, int] = field(default_factory=dict)
    """Metrics that were NaN or infinite -> number of samples at the first such value."""


@dataclass
class Book:
    """The file, in memory."""

    uri: str
    """Address of the server; passwords masked."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the sweep's directory: finds the parent run if the answer with its id was lost."""
    experiment_id: str = ""
    run_id: str = ""
    """Id of the parent run."""
    trials: dict[int, Sent] = field(default_factory=dict)
    lost: bool = False
    """True if the file is missing or damaged although the sweep has begun: find its runs in MLflow and adopt them."""
    _written: float = 0.0
    _pause: float = _EVERY

    @classmethod
    def open(cls, path: Path, uri: str) -> Book:
        """Return the book of this directory; a new one if the file is missing, damaged or written for another server:
        everything is then sent again, to the current server. If the recorded database file no longer exists, it was
        moved; if the new database lacks the parent run, everything is sent again, too."""
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
            trials = {int(number): Sent(**sent) for number, sent in found.pop("trials").items()}
            book = cls(**found, trials=trials)
            if not book._is_typed():
                raise TypeError
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return cls(uri, lost=(path.parent / LOCK).exists())
        file = sqlite_file(book.uri)
        if book.uri != uri and (file is None or file.exists()):
            return cls(uri)
        book.uri = uri
        return book

    def _is_typed(self) -> bool:
        """Return whether every field has its declared type; a damaged file may hold anything."""
        names = (self.uri, self.id, self.experiment_id, self.run_id, *(sent.run_id for sent in self.trials.values()))
        offsets = [sent.offset for sent in self.trials.values()]
        return all(isinstance(name, str) for name in names) and all(type(o) is int and o >= 0 for o in offsets)

    def save(self, path: Path, sync: Callable[[], None], *, now: bool = False) -> None:
        """Write the file, at most once a second unless `now` (less often if there are so many trials that writing takes
        more than 2% of the time). Call `sync` first: it makes durable what the file says the server has."""
        begun = time.monotonic()
        if not now and begun - self._written < self._pause:
            return
        sync()
        trials = {f"{number:04d}": _short(sent) for number, sent in sorted(self.trials.items())}
        head = {"uri": self.uri, "id": self.id, "experiment_id": self.experiment_id, "run_id": self.run_id}
        write_text(path, json.dumps({**head, "trials": trials}, separators=(",", ":")) + "\n")
        self._written = time.monotonic()
        self._pause = max(_EVERY, 50 * (self._written - begun))


def _short(sent: Sent) -> dict[str, Any]:
    return {key: value for key, value in vars(sent).items() if value not in (None, {}, 0, "", False)}
