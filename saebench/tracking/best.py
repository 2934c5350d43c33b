"""Which trials of a sweep are the best ones, read off their directories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from statistics import fmean
from typing import NamedTuple

from saebench.config import TrialConfig
from saebench.runs import events
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import read_config
from saebench.tracking.uploads import sae_files


class Scored(NamedTuple):
    number: int
    config: TrialConfig
    value: float


def best_trials(paths: SweepPaths, complete: Iterable[int], objective: str, *, maximize: bool) -> list[Scored]:
    """The best trial of every stratum that has its SAE on disk, by the rule of `saebench report`: of the point with
    the best mean among those with every seed (none has: the best at the first seed) the best trial."""
    trials = list(_scored(paths, complete, objective))
    seeds = {trial.config.seed for trial in trials}
    sign = -1.0 if maximize else 1.0
    strata: dict[str, list[Scored]] = {}
    for trial in trials:
        strata.setdefault(trial.config.stratum, []).append(trial)
    return [min(_point(mine, seeds, sign), key=lambda trial: sign * trial.value) for mine in strata.values()]


def _scored(paths: SweepPaths, complete: Iterable[int], objective: str) -> Iterator[Scored]:
    for number in sorted(complete):
        trial = paths.trial(number)
        config, value = read_config(trial), _last(trial, objective)
        if config is not None and value is not None and sae_files(trial.sae):
            yield Scored(number, config, value)


def _last(trial: TrialPaths, objective: str) -> float | None:
    values = [event.values[objective] for event, _ in events.read(trial.events) if objective in event.values]
    return values[-1] if values and isfinite(values[-1]) else None


def _point(trials: list[Scored], seeds: set[int], sign: float) -> list[Scored]:
    """The trials of the best point of a stratum."""
    points: dict[str, list[Scored]] = {}
    for trial in trials:
        points.setdefault(trial.config.point, []).append(trial)
    full = [mine for mine in points.values() if seeds <= {trial.config.seed for trial in mine}]
    if full:
        return min(full, key=lambda mine: sign * fmean(trial.value for trial in mine))
    first = min(trial.config.seed for trial in trials)
    return min(
        (mine for mine in points.values() if any(trial.config.seed == first for trial in mine)),
        key=lambda mine: min(sign * trial.value for trial in mine if trial.config.seed == first),
    )
