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
        for wrong in filter(None, (_config_problem(trial), _size_problem(trial.state))):
            if _size(trial.events) or not wrong.endswith(_UNBEGUN):
                yield f"{wrong}; the next start writes it again: saebench resume {paths.name}"


_UNBEGUN = (": is missing", ": is empty")
"""End of a line for a trial without events, which may be in the middle of being opened."""


def _config_problem(trial: TrialPaths) -> str:
    try:
        check_config(trial)
    except FileNotFoundError:
        return f"{trial.config}: is missing"
    except DamagedError as error:
        return _size_problem(trial.config) or str(error)
    return ""


def _size_problem(path: Path) -> str:
    size = _size(path)
    return f"{path}: is missing" if size is None else "" if size else f"{path}: is empty"


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
