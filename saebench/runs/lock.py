"""What a sweep was started with.

`lock.json` is what the sweep was resolved to at its first start; a later start must agree with it, but for what may
grow.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from saebench.errors import SpecError
from saebench.runs.holder import now
from saebench.runs.paths import SweepPaths

EXTENDABLE = ("seeds", "search.points", "run", "budget", "tracking", "description")
"""Keys of a spec (and everything below them) that `--extend` may change: they add trials or say where and how long
trials run, and leave the trials that exist what they are."""
PER_START = ("run.devices", "run.per_device", "tracking.log_sae", "data.encode_batch_size")
"""Keys that may differ at every start, without a word: another machine, more of the same one, copies of files."""
_PACKAGES = ("saebench", "torch", "sentence-transformers", "datasets", "numpy", "optuna", "mlflow")


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


def is_per_start(key: str) -> bool:
    """Does this key only say on which devices the trials of this start run, or what of them is copied?"""
    return any(key == free or key.startswith(f"{free}[") for free in PER_START)


_LOCATIONS = ("data.model", "data.dataset.path", "data.dataset.data_files")
"""Keys that hold names of files and folders."""


def is_moved(key: str, old: Any, new: Any) -> bool:
    """Whether both values are the same local files in another folder, as in a project that was moved or renamed. That
    their content is the same too is what the key of the embeddings is compared for."""
    before, after = ([value] if isinstance(value, str) else value for value in (old, new))
    if not key.startswith(_LOCATIONS) or not isinstance(before, list) or not isinstance(after, list):
        return False
    names = [[os.path.basename(str(path)) for path in paths if os.path.isabs(str(path))] for paths in (before, after)]
    return len(before) == len(after) == len(names[0]) and names[0] == names[1]


def is_extension(key: str, old: Any, new: Any) -> bool:
    """Is this change one that `--extend` allows? Seeds may be added, points only become more."""
    if not any(key == grows or key.startswith((f"{grows}.", f"{grows}[")) for grows in EXTENDABLE):
        return False
    if key == "seeds":
        return set(old or ()) <= set(new or ())
    if key == "search.points":
        return (new or 1) >= (old or 1)
    return True


def check_unchanged(
    lock: Mapping[str, Any], spec: Mapping[str, Any], paths: SweepPaths, *, extend: bool
) -> dict[str, Any]:
    """The changes of `spec` against the lock that `extend` allows; raises SpecError with a diff for all others. What is
    free to change is none."""
    different = differences(lock["spec"], spec).items()
    changes = {key: pair for key, pair in different if not is_per_start(key) and not is_moved(key, *pair)}
    refused = {key: pair for key, pair in changes.items() if not (extend and is_extension(key, *pair))}
    if not refused:
        return {key: list(pair) for key, pair in changes.items()}
    lines = [f"  {key}: {_show(old)} -> {_show(new)}" for key, (old, new) in refused.items()]
    if not extend and all(is_extension(key, *pair) for key, pair in refused.items()):
        advice = "--extend takes these changes into the sweep"
    else:
        advice = "give the sweep another name, or undo the changes (--extend allows: " + ", ".join(EXTENDABLE) + ")"
    raise SpecError("\n".join([f"the spec differs from the one {paths.root} was started with:", *lines, advice]))


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)
