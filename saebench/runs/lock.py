"""What a sweep was started with.

`lock.json` holds the resolved spec of the first start; at a later start the spec must be the same, except for keys that
may be extended and keys that may differ at every start.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import socket
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, TypeAdapter

from saebench.config import PositiveInt
from saebench.errors import SpecError
from saebench.runs.durable import write_json
from saebench.runs.files import DamagedError, read, sealed
from saebench.runs.holder import now
from saebench.runs.paths import SweepPaths
from saebench.runs.secrets import mask_all

EXTENDABLE = ("seeds", "search.points", "search.refine", "run", "budget", "tracking", "description",
              "eval.primary", "eval.margin")  # fmt: skip
"""Keys of a spec (and everything below them) that `--extend` may change: they add trials or determine where and how
long trials run, and do not affect existing trials."""
PER_START = ("search.storage", "run.executor", "run.devices", "run.per_device", "run.grace", "run.address",
             "run.agents", "run.gpus_per_trial", "run.storage", "run.transfer_mbps", "run.insecure",
             "tracking.log_sae", "data.encode_batch_size")  # fmt: skip
"""Keys that may differ at every start without --extend: another machine, more of the same one, copies of files."""
_PACKAGES = ("saebench", "torch", "sentence-transformers", "datasets", "numpy", "optuna", "mlflow")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Tracked(_Frozen):
    """Where the sweep is recorded."""

    uri: str = ""
    """Secrets masked."""
    experiment_id: str = ""
    run_id: str = ""
    """Parent run."""


class Extension(_Frozen):
    """What one `--extend` changed."""

    at: str
    changes: dict[str, tuple[Any, Any]]
    """Dotted key -> (old, new)."""


class Lock(_Frozen):
    """Content of lock.json."""

    format: Literal[1] = 1
    name: str = ""
    description: str = ""
    spec: dict[str, Any]
    """As resolved, secrets masked."""
    d_in: PositiveInt
    num_train: int | None = None
    num_validation: int | None = None
    num_test: int | None = None
    cache_key: str | None = None
    """Key of the cache entry with the embeddings; null if `data.cache` is off."""
    second_key: str | None = None
    """Key of the cache entry by `eval.second_encoder`."""
    data: dict[str, Any] = {}
    """The description of the cache entry."""
    threads: PositiveInt | None = None
    """Cores of each trial, from `run.threads` or the machine of the first start."""
    tracking: Tracked = Tracked()
    created: str = ""
    host: str = ""
    python: str = ""
    platform: str = ""
    versions: dict[str, str] = {}
    git: dict[str, str] | None = None
    """Commit of the spec's folder."""
    extended: tuple[Extension, ...] = ()

    def info(self) -> dict[str, Any]:
        """Return the lock as JSON-like values."""
        return self.model_dump(mode="json", exclude_none=True)


_LOCK: TypeAdapter[Lock] = TypeAdapter(Lock)
_LARGEST = 16 << 20


def provenance(folder: Path) -> dict[str, Any]:
    """Return versions, machine and git commit (of `folder`, the folder of the spec)."""
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


def git(folder: Path) -> dict[str, str] | None:
    """Return the commit; None outside a repository or without git.

    Uncommitted changes are not checked: `git status` runs programs that the repository's own configuration names
    (core.fsmonitor, filters), and an unpacked folder may come from anyone. `rev-parse` reads refs and runs nothing.
    """
    command = ["git", "-C", str(folder), "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"]
    try:
        run = subprocess.run(
            [*command, "rev-parse", "--verify", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    commit = run.stdout.strip()
    return {"commit": commit} if re.fullmatch(r"[0-9a-f]{40,64}", commit) else None


def read_lock(paths: SweepPaths) -> Lock | None:
    """Return the sweep's lock; None if the sweep has not written it yet. Raises SpecError if it cannot be read."""
    try:
        return read(_LOCK, paths.lock, _LARGEST)
    except FileNotFoundError:
        return None
    except DamagedError as error:
        raise SpecError(str(error)) from None


def write_lock(paths: SweepPaths, lock: Lock) -> None:
    """Write lock.json, with secrets masked and its sum."""
    write_json(paths.lock, sealed(mask_all(lock.info())))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested mappings and lists as {dotted key: scalar}; lists of scalars stay whole."""
    if isinstance(value, Mapping) and value:
        pairs = ((f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items())
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        pairs = ((f"{prefix}[{index}]", item) for index, item in enumerate(value))
    else:
        return {prefix: list(value) if isinstance(value, tuple) else value}
    return {key: leaf for name, item in pairs for key, leaf in flatten(item, name).items()}


def differences(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Return dotted key -> (old, new) for each difference between two resolved specs; a key that is missing counts as
    None."""
    before, after = flatten(old), flatten(new)
    keys = [*before, *(key for key in after if key not in before)]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def is_per_start(key: str) -> bool:
    """Return whether this key only determines where the trials of this start run, or which files are copied."""
    return any(key == name or key.startswith(f"{name}[") for name in PER_START)


_LOCATIONS = (
    "data.model", "data.dataset.path", "data.dataset.data_files",
    "data.embeddings", "data.texts", "data.ids", "data.labels",
)  # fmt: skip
"""Keys that hold names of files and folders."""


def is_moved(key: str, old: Any, new: Any) -> bool:
    """Return whether both values are the same local files in another folder, as in a project that was moved or renamed.
    Their content is compared by the key of the embeddings."""
    before, after = ([value] if isinstance(value, str) else value for value in (old, new))
    if not key.startswith(_LOCATIONS) or not isinstance(before, list) or not isinstance(after, list):
        return False
    names = [[os.path.basename(str(path)) for path in paths if os.path.isabs(str(path))] for paths in (before, after)]
    return len(before) == len(after) == len(names[0]) and names[0] == names[1]


def is_extension(key: str, old: Any, new: Any) -> bool:
    """Return whether `--extend` allows this change. Seeds may be added, and points may only increase."""
    if not any(key == name or key.startswith((f"{name}.", f"{name}[")) for name in EXTENDABLE):
        return False
    if key == "run.threads":
        return False
    if key == "seeds":
        return set(old or ()) <= set(new or ()) and (not old or old[0] == new[0])
    if key in ("search.points", "search.refine"):
        return (new or 1) >= (old or 1)
    return True


def check_unchanged(
    old: Mapping[str, Any], new: Mapping[str, Any], paths: SweepPaths, *, extend: bool
) -> dict[str, tuple[Any, Any]]:
    """Return the changes between two resolved specs that `extend` allows, per-start keys left out; raise SpecError with
    a diff for all others. Files that moved with their project do not count as a change."""
    different = differences(mask_all(dict(old)), mask_all(dict(new))).items()
    changes = {key: pair for key, pair in different if not is_per_start(key) and not is_moved(key, *pair)}
    refused = {key: pair for key, pair in changes.items() if not (extend and is_extension(key, *pair))}
    if not refused:
        return changes
    lines = [f"  {key}: {_show(before)} -> {_show(after)}" for key, (before, after) in refused.items()]
    if not extend and all(is_extension(key, *pair) for key, pair in refused.items()):
        advice = "run the same command with --extend to apply these changes to the sweep"
    else:
        advice = "give the sweep another name, or undo the changes (--extend allows: " + ", ".join(EXTENDABLE) + ")"
    raise SpecError("\n".join([f"the spec differs from the one {paths.root} was started with:", *lines, advice]))


def _show(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value, default=str)
