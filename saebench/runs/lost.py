"""Files of trials that are lost, as far as a look at the directory shows it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from saebench.runs.paths import SweepPaths


def lost_files(paths: SweepPaths) -> Iterator[str]:
    """Yield a line for each trial that has recorded events but whose config.json or state.json is missing or empty.
    The scheduler writes both before a trial's first event. (`read_states` names those that cannot be read.)"""
    for trial in paths.trials():
        if not _size(trial.events):
            continue
        for path in (trial.config, trial.state):
            if not (size := _size(path)):
                how = "is missing" if size is None else "is empty"
                yield f"{path}: {how}; the next start writes it again: saebench resume {paths.name}"


def _size(path: Path) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
