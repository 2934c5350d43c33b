"""Requests in files: `saebench stop` ends a sweep early, `saebench retry` retries failed trials."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import TypeAdapter

from saebench.runs.files import DamagedError, read, read_bytes
from saebench.runs.paths import SweepPaths

_NUMBERS: TypeAdapter[list[int]] = TypeAdapter(list[int])


@dataclass
class Halt:
    """Why the sweep ends before its end."""

    reason: str
    exit_code: int
    now: bool = False
    brief: str = ""
    """What is shown where the reason stands on another line; empty: the reason."""

    def __str__(self) -> str:
        return self.brief or self.reason


def stop_request(paths: SweepPaths) -> Halt | None:
    """Return a Halt for the file that `saebench stop` leaves, None without one."""
    if paths.stop.exists():
        with contextlib.suppress(FileNotFoundError, DamagedError):
            asked = read_bytes(paths.stop, 1 << 10).decode("utf-8", "replace").strip()
            return Halt("saebench stop", 75, now=asked == "now")
    return None


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
