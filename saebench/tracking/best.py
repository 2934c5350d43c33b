"""Find the best trials of a sweep from their directories."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import NamedTuple

from saebench.config import TrialConfig
from saebench.runs import events
from saebench.runs.choice import Tried, choose
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import read_config, read_state
from saebench.runs.tags import Tag
from saebench.tracking.uploads import sae_files


class Scored(NamedTuple):
    number: int
    config: TrialConfig
    value: float
    search: Mapping[str, str]
    """Tags of the search."""

    @property
    def tried(self) -> Tried:
        role, choice = self.search.get(Tag.ROLE, ""), self.search.get(Tag.CHOICE, "")
        number = int(choice) if choice.isdecimal() else 0
        return Tried(self.config.point, self.config.seed, self.value, role, number)


def best_trials(paths: SweepPaths, complete: Iterable[int], objective: str, *, maximize: bool) -> list[Scored]:
    """Return the best trial with an SAE on disk of each stratum, by the rule of `saebench report`: the trial with the
    best value, of any seed, at the best point (runs/choice.py)."""
    trials = list(_scored(paths, complete, objective))
    seeds = {trial.config.seed for trial in trials}
    strata: dict[str, list[Scored]] = {}
    for trial in trials:
        strata.setdefault(trial.config.stratum, []).append(trial)
    return [_best(mine, seeds, maximize) for mine in strata.values()]


def _best(trials: list[Scored], seeds: set[int], maximize: bool) -> Scored:
    """The best trial of the best point of one stratum."""
    chosen = choose([trial.tried for trial in trials], seeds, maximize=maximize)
    points = {trials[place].config.point for place in chosen.trials}
    same = [trial for trial in trials if trial.config.point in points] or trials
    return (max if maximize else min)(same, key=lambda trial: trial.value)


def _scored(paths: SweepPaths, complete: Iterable[int], objective: str) -> Iterator[Scored]:
    for number in sorted(complete):
        trial = paths.trial(number)
        config, value = read_config(trial), _last(trial, objective)
        if config is not None and value is not None and sae_files(trial.sae):
            state = read_state(trial)
            yield Scored(number, config, value, state.search if state else {})


def _last(trial: TrialPaths, objective: str) -> float | None:
    values = [event.values[objective] for event, _ in events.read(trial.events) if objective in event.values]
    return values[-1] if values and isfinite(values[-1]) else None
