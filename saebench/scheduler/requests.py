"""Requests from outside the loop: signals and `saebench stop` end a sweep early, `saebench retry` retries trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydantic import TypeAdapter

from saebench.runs.files import DamagedError, read, read_bytes
from saebench.runs.paths import SweepPaths
from saebench.scheduler.protocols import Signals

_NUMBERS: TypeAdapter[list[int]] = TypeAdapter(list[int])


@dataclass
class Halt:
    """Why the sweep ends before its end."""

    reason: str
    exit_code: int
    now: bool = False


def stop_requests(paths: SweepPaths, signals: Signals) -> Iterator[Halt]:
    """Yield a Halt for the signals that have come, and one for the file that `saebench stop` leaves."""
    if signals.level:
        yield Halt(signals.why, signals.exit_code, now=signals.level > 1)
    if paths.stop.exists():
        with contextlib.suppress(FileNotFoundError, DamagedError):
            asked = read_bytes(paths.stop, 1 << 10).decode("utf-8", "replace").strip()
            yield Halt("saebench stop", 75, now=asked == "now")


def retry_request(paths: SweepPaths, note: Callable[[str], None]) -> list[int]:
    """Return the trials that `saebench retry` names, and remove its file; `note` gets a line if it cannot be read."""
    if not paths.retry.exists():
        return []
    numbers: list[int] = []
    try:
        numbers = read(_NUMBERS, paths.retry, 1 << 20)
    except FileNotFoundError:
        return []
    except DamagedError as error:
        note(f"{error}; run saebench retry again")
    with contextlib.suppress(OSError):
        paths.retry.unlink()
    return numbers
