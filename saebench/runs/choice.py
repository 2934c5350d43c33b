"""Which trials of a stratum measure its best point: one rule for the report and for the SAEs that MLflow gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Literal, NamedTuple, TypeVar

Key = TypeVar("Key", int, str)


class Tried(NamedTuple):
    """A complete trial that has a finite value of the objective."""

    point: str
    seed: int
    value: float
    role: str = ""
    """search or compare (Tag.ROLE); empty in sweeps made before there were roles."""
    choice: int = 0
    """Of a trial that compares, the number of the choice it measures (Tag.CHOICE)."""


class Chosen(NamedTuple):
    """The trials that measure the best point."""

    trials: tuple[int, ...]
    """Their indices in the given list, in order; none if there is no complete trial."""
    by: Literal["compare", "search", "all seeds", "first seed", "nothing"]
    among: int = 0
    """Points it was chosen from; 0 for compare."""


def choose(tried: Sequence[Tried], seeds: Iterable[int], *, maximize: bool) -> Chosen:
    """Return the trials that measure the best point of one stratum.

    If the sweep searched with one seed and compared with the others: the trials of the newest choice, or the best trial
    of the search while none of these is complete. In older sweeps: the trials of the point with the best mean among the
    points that have all `seeds`, or, if no point has them, of the point with the best value at the first seed.
    """
    if any(trial.role for trial in tried):
        return _by_search(tried, maximize)
    points: dict[str, list[int]] = {}
    for place, trial in enumerate(tried):
        points.setdefault(trial.point, []).append(place)
    wanted = set(seeds)
    full = {p: fmean(tried[i].value for i in at) for p, at in points.items() if wanted <= {tried[i].seed for i in at}}
    if full:
        return Chosen(tuple(points[_best(full, maximize)]), "all seeds", len(full))
    if not tried:
        return Chosen((), "nothing")
    first = min(trial.seed for trial in tried)
    at_first = {trial.point: trial.value for trial in tried if trial.seed == first}
    return Chosen(tuple(points[_best(at_first, maximize)]), "first seed", len(at_first))


def _by_search(tried: Sequence[Tried], maximize: bool) -> Chosen:
    compared = [i for i, trial in enumerate(tried) if trial.role == "compare" and trial.choice > 0]
    if compared:
        newest = max(tried[i].choice for i in compared)
        return Chosen(tuple(i for i in compared if tried[i].choice == newest), "compare")
    searched = {i: trial.value for i, trial in enumerate(tried) if trial.role == "search"}
    if not searched:
        return Chosen((), "nothing")
    return Chosen((_best(searched, maximize),), "search", len({tried[i].point for i in searched}))


def _best(values: dict[Key, float], maximize: bool) -> Key:
    """The key with the best value, the first of several."""
    return (max if maximize else min)(values, key=values.__getitem__)
