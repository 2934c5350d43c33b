"""Find trials by SWEEP/NUMBER, by directory, or as the best ones of a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saebench.errors import UserError
from saebench.latents.trial import TrainedSAE, open_trial
from saebench.runs.paths import EXPORTED_CONFIG, TRIAL_CONFIG, SweepPaths, runs_dir

Best = Callable[[str | None, str | None], list[Path]]


def trials(name: str | None, runs: str | None, best: Best) -> list[TrainedSAE]:
    """The trial called `name`, or the trials that `best(sweep, runs)` finds. Raises UserError in one line."""
    if name is not None:
        folder = Path(name)
        if any((folder / file).is_file() for file in (TRIAL_CONFIG, EXPORTED_CONFIG)):
            return [open_trial(folder)]
        sweep, _, number = name.rpartition("/")
        if sweep and number.isdigit():
            return [open_trial(_of_sweep(sweep, int(number), runs), name)]
    found = best(name, runs)
    if not found:
        raise UserError(
            f"{name}: the sweep's directory is not on this machine; `saebench export` copies an SAE, and that folder "
            "can be given here"
        )
    return [open_trial(folder) for folder in found]


def _of_sweep(sweep: str, number: int, runs: str | None) -> Path:
    for root in (Path(sweep), runs_dir(runs) / sweep):
        there = SweepPaths(root.absolute()).trial(number).root
        if there.is_dir():
            return there
    raise UserError(f"{sweep}/{number}: no such trial in {runs_dir(runs)}")
