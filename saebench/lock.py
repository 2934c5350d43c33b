"""One scheduler per sweep, and what the sweep was started with.

`scheduler.lock` is held by the operating system's means for as long as the process lives, so that a killed scheduler
leaves nothing behind; `scheduler.json` says to people (and to `saebench status`) who holds it. `lock.json` is what the
sweep was resolved to at its first start; a later start must agree with it, but for what may grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import psutil
from filelock import FileLock, Timeout

from saebench.errors import LockedError, PreflightError, SpecError
from saebench.paths import SweepPaths, write_json

GROWS = ("seeds", "search.points", "run", "budget", "tracking", "description")
"""Keys of a spec (and everything below them) that `--extend` may change: they add trials or say where and how long
trials run, and leave the trials that exist what they are."""
FREE = ("run.devices", "run.per_device", "tracking.log_sae", "data.encode_batch_size")
"""Keys that may differ at every start, without a word: another machine, more of the same one, copies of files."""
_OWN_FILES = frozenset(
    {"scheduler.lock", "scheduler.json", "scheduler.log", "optuna.journal", "tracking.json", "retry.json", "stop"}
)
"""What a start that was killed before lock.json may have left in a sweep's directory."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_PACKAGES = ("saebench", "torch", "sentence-transformers", "datasets", "numpy", "optuna", "mlflow")


class Holder:
    """The right to work on a sweep, from `acquire` to `release`."""

    def __init__(self, paths: SweepPaths) -> None:
        self._paths = paths
        self._lock = FileLock(paths.holder_lock)

    def acquire(self) -> Self:
        """Raises LockedError, naming who holds it."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise LockedError(
                f"{self._paths.root}: another scheduler works on this sweep: {describe(self._paths)}"
            ) from None
        except OSError as error:
            raise PreflightError(f"{self._paths.root}: cannot write here: {error.strerror or error}") from None
        write_json(self._paths.holder, {**myself(), "since": time.time(), "at": now()})
        return self

    def release(self) -> None:
        if self._lock.is_locked:
            self._paths.holder.unlink(missing_ok=True)
            self._lock.release()


@contextlib.contextmanager
def at_work_on(paths: SweepPaths) -> Iterator[None]:
    """Hold the sweep's directory; a new one that got no lock.json is removed again, with its parent if that is new."""
    new = [folder for folder in (paths.root, paths.root.parent) if not folder.exists()]
    try:
        paths.root.mkdir(parents=True, exist_ok=True)
        strange = {path.name for path in paths.root.iterdir() if not path.name.startswith(".")} - _OWN_FILES
    except OSError as error:
        raise PreflightError(f"{paths.root}: cannot write here: {error.strerror or error}") from None
    if strange and not paths.lock.exists():
        raise PreflightError(f"{paths.root}: is there already and is not a sweep; use another name or --runs-dir")
    held = Holder(paths)
    try:
        held.acquire()
        try:
            yield
        finally:
            held.release()
    finally:
        if paths.root in new and not paths.lock.exists():
            shutil.rmtree(paths.root, ignore_errors=True)
            if paths.root.parent in new:
                with contextlib.suppress(OSError):  # somebody else uses it by now
                    paths.root.parent.rmdir()


def holder(paths: SweepPaths) -> dict[str, Any] | None:
    """Who works on the sweep now; None when nobody does. A holder on another host cannot be checked and is believed."""
    try:
        found: dict[str, Any] = json.loads(paths.holder.read_text("utf-8"))
        if found["at"] and found["since"] and found["host"] != socket.gethostname():
            return found
        return found if born(found["pid"]) == found["born"] else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def myself() -> dict[str, Any]:
    """This process, in words that no other one will ever answer to."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "born": born(os.getpid())}


def born(pid: int) -> str:
    """What tells a living process from others that get the same number. A clock that is set changes nothing: Linux
    counts a process's age from the boot, and psutil's create_time is that count plus a boot time that moves with the
    clock. Raises OSError or psutil.Error where there is no such process."""
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
    """The holder in words."""
    found = holder(paths)
    if found is None:
        return "a process that has just started"
    return f"process {found['pid']} on {found['host']}, since {found['at']}"


def now() -> str:
    """The local time with its offset, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


# --- lock.json -------------------------------------------------------------------------------------------------------


def provenance(folder: Path) -> dict[str, Any]:
    """Versions, machine and git commit (of `folder`, where the spec lies)."""
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return {
        "created": now(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": found,
        "git": git(folder),
    }


def git(folder: Path) -> dict[str, Any] | None:
    """Commit and whether the tree has changes; None outside a repository or without git."""

    def ask(*arguments: str) -> str:
        run = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return run.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "dirty": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def read_lock(paths: SweepPaths) -> dict[str, Any] | None:
    """The sweep's lock.json; None where the sweep never got as far. Raises SpecError when it cannot be read."""
    if not paths.lock.exists():
        return None
    try:
        found = json.loads(paths.lock.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{paths.lock}: cannot be read: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("spec"), dict):
        raise SpecError(f"{paths.lock}: is not the lock of a sweep: it has no spec")
    return found


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists as {dotted key: scalar}; lists of scalars stay whole."""
    if isinstance(value, Mapping) and value:
        pairs = ((f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        pairs = ((f"{prefix}[{index}]", item) for index, item in enumerate(value))
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {key: leaf for name, item in pairs for key, leaf in flatten(item, name).items()}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old, new) where two resolved specs differ; a key that is missing counts as None."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def is_free(key: str) -> bool:
    """Does this key only say on which devices the trials of this start run, or what of them is copied?"""
    return any(key == free or key.startswith(f"{free}[") for free in FREE)


def may_grow(key: str, old: Any, new: Any) -> bool:
    """Is this change one that `--extend` allows? Seeds may be added, points only become more."""
    if not any(key == grows or key.startswith((f"{grows}.", f"{grows}[")) for grows in GROWS):
        return False
    if key == "seeds":
        return set(old or ()) <= set(new or ())
    if key == "search.points":
        return (new or 1) >= (old or 1)
    return True


def agree(lock: Mapping[str, Any], spec: Mapping[str, Any], paths: SweepPaths, *, extend: bool) -> dict[str, Any]:
    """The changes of `spec` against the lock that `extend` allows; raises SpecError with a diff for all others. What is
    free to change is none."""
    changes = {key: pair for key, pair in differences(lock["spec"], spec).items() if not is_free(key)}
    refused = {key: pair for key, pair in changes.items() if not (extend and may_grow(key, *pair))}
    if not refused:
        return {key: list(pair) for key, pair in changes.items()}
    lines = [f"  {key}: {_show(old)} -> {_show(new)}" for key, (old, new) in refused.items()]
    if not extend and all(may_grow(key, *pair) for key, pair in refused.items()):
        advice = "--extend takes these changes into the sweep"
    else:
        advice = "give the sweep another name, or undo the changes (--extend allows: " + ", ".join(GROWS) + ")"
    raise SpecError("\n".join([f"the spec differs from the one {paths.root} was started with:", *lines, advice]))


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)
