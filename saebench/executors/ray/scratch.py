"""Scratch folders of a node: <base>/<sweep's id>/<attempt>/trials/NNNN. Each attempt has its own folder, so that a
worker of an earlier attempt, which may still run, cannot write into it."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from saebench.executors.ray.wire import Json
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import read_state


def base_folder() -> Path:
    """Return SAEBENCH_SCRATCH, else this user's folder in the temporary folder. Raises OSError if it belongs to another
    user."""
    if given := os.environ.get("SAEBENCH_SCRATCH"):
        return Path(given)
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"saebench-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:
        raise PermissionError(errno.EPERM, "belongs to another user", str(folder))
    return folder


def trials_in(scratch: Path) -> list[TrialPaths]:
    """Return the folders of trials, those of later attempts last."""
    attempts = sorted((p for p in scratch.glob("[0-9]*") if p.is_dir()), key=lambda path: int(path.name))
    return [trial for attempt in attempts for trial in SweepPaths(attempt).trials()]


def wanted(trials: Sequence[TrialPaths], numbers: Sequence[int] | None) -> list[TrialPaths]:
    """Return the trials with these numbers; for None (no trial of this start runs yet) those that have not ended."""
    if numbers is not None:
        return [trial for trial in trials if trial.number in numbers]
    states = [(trial, read_state(trial)) for trial in trials]
    return [trial for trial, state in states if state is None or not state.ended]


def kept(trial: TrialPaths) -> Json:
    """Return the state of a trial in a scratch folder: {number, checkpoint: newest, size: of its record}."""
    newest = sorted(p.name for p in trial.checkpoint.glob("[0-9]*")) if trial.checkpoint.is_dir() else []
    size = trial.events.stat().st_size if trial.events.is_file() else 0
    return {"number": trial.number, "checkpoint": newest[-1] if newest else "", "size": size}
