"""The events of a worker: one JSON object per line in `events.jsonl`, the durable record of a trial.

An event is recorded once per (type, samples): an attempt that resumes from a checkpoint passes marks that are already
in the file and does not write them again, so no metric point is duplicated however often a trial is interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from saebench.runs.files import is_intact, seal_line

EventType = Literal["start", "step", "eval", "checkpoint", "done", "failed", "left"]
FailureKind = Literal[
    "cuda_oom", "host_oom", "diverged", "collapsed", "crash", "stall", "user_error", "killed", "no_space",
    "lost", "preempted",
]  # fmt: skip


class Verdict(StrEnum):
    """The scheduler's answer to an `eval` event."""

    GO = "go"
    PRUNE = "prune"
    """Stop and keep the weights; the trial is PRUNED."""
    LEAVE = "leave"
    """Write a checkpoint and exit; the trial is resumed later."""


@dataclass(frozen=True)
class Event:
    """One line.

    start: the attempt starts (`info`: device, pid, versions). step: training metrics. eval: validation metrics at a
    fixed mark; the worker waits for a verdict. checkpoint: durable up to `samples`. done: `values` are the final
    metrics, the SAE is saved; if that is the SAE of an earlier mark, `info["kept"]` is the mark's samples and
    `info["fvu_at_end"]` is where training ended. failed: `info` has kind, message, traceback. left: `info["why"]` is
    "prune" or "leave".
    """

    type: EventType
    samples: int
    values: dict[str, float] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    attempt: int = 1
    ts: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since the epoch, of the worker."""

    def files(self) -> dict[str, tuple[int, int]]:
        """Return size and crc32 of the files that a `done` event names; empty if it names none."""
        try:
            return _FILES.validate_python(self.info.get("files", {}))
        except ValueError:
            return {}

    def to_line(self) -> str:
        return seal_line(json.dumps(asdict(self), separators=(",", ":")))

    @classmethod
    def from_line(cls, line: str | bytes) -> Event:
        """Raises ValueError if the line is not an event, or not the one that was written."""
        data = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if not is_intact(data):
            raise ValueError(f"not the event that was written: {line[:80]!r}")
        return _EVENT.validate_json(data)  # its ValidationError is a ValueError


_EVENT = TypeAdapter(Event)
_FILES: TypeAdapter[dict[str, tuple[int, int]]] = TypeAdapter(dict[str, tuple[int, int]])
LONGEST = 4 << 20
"""Bytes of a line of events.jsonl; a traceback may be in it."""
_ONCE = ("step", "eval", "done")
_ENDS = ("done", "left", "failed")
"""Events that are synced at once. The others need not be: after a power cut the trial records them again."""


class EventLog:
    """Appends events to a file, once per (type, samples); repairs a torn last line when it opens."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        repair(path)
        self._seen = {(e.type, e.samples) for e, _ in read(path) if e.type in _ONCE}
        self._file = path.open("a", encoding="utf-8")

    def append(self, event: Event) -> bool:
        """Write `event`; return False if this mark is already recorded."""
        key = (event.type, event.samples)
        if key in self._seen:
            return False
        self._file.write(event.to_line())
        self._file.flush()
        if event.type in _ENDS:
            os.fsync(self._file.fileno())
        if event.type in _ONCE:
            self._seen.add(key)
        return True

    def close(self) -> None:
        self._file.close()


def repair(path: Path) -> None:
    """Cut off an incomplete last line (its writer died while writing it)."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        if data and not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield the events from byte `offset` on, each with the offset after it; stop before an unfinished line."""
    for event, end in _lines(path, offset):
        if event is not None:
            yield event, end


def damaged(path: Path) -> int:
    """Return how many finished lines of the file are not the events that were written."""
    return sum(event is None for event, _ in _lines(path, 0))


def _lines(path: Path, offset: int) -> Iterator[tuple[Event | None, int]]:
    """Every finished line as its event (None for one that cannot be read) with the offset after it."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(offset)
        while line := file.readline(LONGEST):
            offset += len(line)
            while not line.endswith(b"\n") and (more := file.readline(LONGEST)):
                line, offset = more, offset + len(more)  # too long: its end alone is no event
            if not line.endswith(b"\n"):
                return
            try:
                yield Event.from_line(line), offset
            except ValueError:
                yield None, offset
