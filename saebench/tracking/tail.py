"""Read events.jsonl while a worker writes it, in batches of the size that MLflow accepts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from saebench.runs import events
from saebench.tracking import record

if TYPE_CHECKING:
    from mlflow.entities import Metric

_BATCH = 1000
"""Metrics per request: MLflow's limit."""


class Batch(NamedTuple):
    """The content of one request."""

    metrics: list[Metric]
    tags: dict[str, str]
    nonfinite: dict[str, int]
    """Metric -> number of samples at which it was NaN or infinite."""
    offset: int
    """Offset in the file up to which everything is sent once the server acknowledges this batch."""


def batches(path: Path, offset: int) -> Iterator[Batch]:
    """Yield the events from byte `offset` on, in requests of at most 1000 metrics; an event is never split."""
    from mlflow.entities import Metric

    batch = Batch([], {}, {}, offset)
    for event, end in events.read(path, offset):
        if event.type == "done":
            event = record.fresh(event, (earlier for earlier, _ in events.read(path)))
        logged = [Metric(key, value, event.ts, event.samples) for key, value in record.points(event).items()]
        if len(batch.metrics) + len(logged) > _BATCH:
            yield batch
            batch = Batch([], {}, {}, batch.offset)
        batch = Batch(
            batch.metrics + logged,
            batch.tags | record.event_tags(event),
            record.not_finite([event]) | batch.nonfinite,
            end,
        )
    if batch.offset != offset:
        yield batch


@dataclass
class Unread:
    """Counts the events after an offset; reads the file only when it or the offset has moved."""

    _seen: tuple[int, int] = field(default=(0, 0))
    _count: int = 0

    def count(self, path: Path, offset: int) -> int:
        end = size(path)
        if self._seen != (offset, end):
            self._count = _lines(path, offset, end) if end > offset else 0
            self._seen = (offset, end)
        return self._count


def _lines(path: Path, start: int, end: int) -> int:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start).count(b"\n")


def size(path: Path) -> int:
    """Return the size in bytes; 0 if the file does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
