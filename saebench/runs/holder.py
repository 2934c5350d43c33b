"""One scheduler per sweep.

`scheduler.lock` is a lock of the operating system that ends with the process, so a killed scheduler blocks no other;
`scheduler.json` names the process that holds it, for messages and for `saebench status`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import psutil
from filelock import FileLock, Timeout
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from saebench.errors import LockedError, PreflightError
from saebench.runs.durable import write_json
from saebench.runs.files import DamagedError, Seconds, read
from saebench.runs.paths import SweepPaths

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Holder:
    """The right to work on a sweep, from `acquire` to `release`."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._lock = FileLock(paths.holder_lock)

    def acquire(self) -> Self:
        """Raises LockedError, which names the holder."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"{self._paths.root}: another scheduler holds this sweep: {describe(self._paths)}; "
                f"wait for its end, or run: saebench stop {self._paths.name}"
            ) from None
        except OSError as error:
            raise PreflightError(
                f"{self._paths.root}: cannot write here: {error.strerror or error}; use another --runs-dir"
            ) from None
        write_json(self._paths.holder, this_process())
        return self

    def release(self) -> None:
        if self._lock.is_locked:
            self._paths.holder.unlink(missing_ok=True)
            self._lock.release()


def _early_files(paths: SweepPaths) -> set[str]:
    """Return the names of the files of a start that was killed before it wrote lock.json."""
    files = (paths.holder_lock, paths.holder, paths.log, paths.journal, paths.tracking, paths.retry, paths.stop)
    return {path.name for path in files}


@contextlib.contextmanager
def hold_sweep_dir(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's directory; a new one that got no lock.json is removed again, with its parent if that is new."""
    new = [folder for folder in (paths.root, paths.root.parent) if not folder.exists()]
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        foreign = {path.name for path in paths.root.iterdir() if not path.name.startswith(".")} - _early_files(paths)
    except OSError as error:
        raise PreflightError(
            f"{paths.root}: cannot write here: {error.strerror or error}; use another --runs-dir"
        ) from None
    if foreign and not paths.lock.exists() and not paths.trials():
        raise PreflightError(
            f"{paths.root}: exists already and is not a sweep directory; use another name or another --runs-dir"
        )
    held = Holder(paths)
    try:
        held.acquire()
        try:
            yield
        finally:
            held.release()
    finally:
        if paths.root in new and not paths.lock.exists() and not paths.trials():
            shutil.rmtree(paths.root, ignore_errors=True)
            if paths.root.parent in new:
                with contextlib.suppress(OSError):  # another process uses it by now
                    paths.root.parent.rmdir()


class Held(TypedDict):
    """Content of scheduler.json."""

    pid: int
    host: str
    born: str
    since: Seconds
    at: str
    """The same, for display."""


_HELD: TypeAdapter[Held] = TypeAdapter(Held)


def holder(paths: SweepPaths) -> Held | None:
    """Return the process that holds the sweep; None if no process does. A holder on another host is not checked."""
    try:
        found = read(_HELD, paths.holder, 1 << 16)
        if found["host"] != socket.gethostname():
            return found
        return found if born(found["pid"]) == found["born"] else None
    except (OSError, ValueError, DamagedError, psutil.Error):
        return None


def this_process() -> Held:
    return {
        "pid": os.getpid(), "host": socket.gethostname(), "born": born(os.getpid()), "since": time.time(), "at": now(),
    }  # fmt: skip


def born(pid: int) -> str:
    """Return an id that distinguishes a living process from others with the same pid. Setting the clock does not change
    it: Linux counts a process's age from the boot, and psutil's create_time is that count plus a boot time that moves
    with the clock. Raises OSError or psutil.Error if there is no such process."""
    if sys.platform != "linux":
        return f"{psutil.Process(pid).create_time():.2f}"
    state, *fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    if state == "Z":
        raise ProcessLookupError(f"{pid}: has ended")
    return f"{_boot()} {fields[18]}"


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # hidden from some containers: a process of an earlier boot may then pass for a living one
        return ""


def describe(paths: SweepPaths) -> str:
    """Return the holder as text."""
    found = holder(paths)
    if found is None:
        return "a process that has just started"
    return f"process {found['pid']} on {found['host']}, since {found['at']}"


def now() -> str:
    """The local time with its offset, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
