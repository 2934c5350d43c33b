"""Files of trials that are lost or damaged, as far as a look at the directory shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from saebench.runs.files import DamagedError
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import check_config


def lost_files(paths: SweepPaths) -> Iterator[str]:
    """Yield a line for each trial whose config.json is damaged, and for each that has recorded events but whose
    config.json or state.json is missing or empty. The scheduler writes both before a trial's first event.
    (`read_states` names each state.json that is damaged.)"""
    for trial in paths.trials():
        begun, absent = bool(_size(trial.events)), {path: _absence(path) for path in (trial.config, trial.state)}
        found = [f"{path}: {how}" for path, how in absent.items() if how and begun]
        if not absent[trial.config]:
            found += _damage(trial)
        for wrong in found:
            yield f"{wrong}; the next start writes it again: saebench resume {paths.name}"


def _damage(trial: TrialPaths) -> list[str]:
    """Return a line if config.json is damaged."""
    try:
        check_config(trial)
    except DamagedError as error:
        return [str(error)]
    except FileNotFoundError:  # removed meanwhile
        pass
    return []


def _absence(path: Path) -> str:
    """Return how a file is missing; empty if it is there."""
    size = _size(path)
    return "is missing" if size is None else "" if size else "is empty"


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
