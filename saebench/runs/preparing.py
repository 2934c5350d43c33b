"""How far the embeddings of a sweep are before its first trial, in a file: `status` says what the live view says.

The scheduler writes it while it reads and encodes texts, and removes it when they are all there.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from saebench.runs.durable import write_json
from saebench.runs.files import DamagedError, read
from saebench.runs.paths import SweepPaths

EVERY = 1.0
"""Seconds between two states in the file."""


@dataclass(frozen=True)
class Preparing:
    """A stage of it; fields as in the cache's progress."""

    stage: str
    done: int
    total: int | None
    rate: float
    message: str

    @property
    def seconds_left(self) -> float | None:
        """None if nothing says."""
        if self.stage != "encoding" or self.rate <= 0 or not self.total:
            return None
        return max(0, self.total - self.done) / self.rate


_ADAPTER: TypeAdapter[Preparing] = TypeAdapter(Preparing)


class PreparingFile:
    """Writes the newest state, once a second at most. A full disk stops no sweep: then there is no file."""

    def __init__(self, paths: SweepPaths) -> None:
        self._path, self._written, self._stage = paths.preparing, 0.0, ""

    def write(self, now: Preparing) -> None:
        if now.stage == self._stage and time.monotonic() - self._written < EVERY:
            return
        self._stage, self._written = now.stage, time.monotonic()
        with contextlib.suppress(OSError):
            write_json(self._path, asdict(now), durable=False)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_preparing(paths: SweepPaths) -> Preparing | None:
    """Return the newest state; None if the file is missing or damaged."""
    try:
        return read(_ADAPTER, paths.preparing)
    except (OSError, DamagedError):
        return None
