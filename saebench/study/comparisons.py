"""The queue of comparing trials: which seeds are still to measure which points."""

from __future__ import annotations

from collections.abc import Sequence

from saebench.plan import Plan
from saebench.runs.tags import Tag
from saebench.spec import Scalar
from saebench.study.refine import choice_tags, choose
from saebench.study.stratum_search import StratumSearch, Trial

COMPARE_TAGS = {Tag.ROLE: "compare"}

Pending = tuple[Trial, int, dict[str, str]]
"""A point, a seed that is to measure it, and the tags of that trial."""


class Comparisons:
    """The queue of trials that measure a chosen point (`replicate: all`: every point) with another seed."""

    def __init__(self, plan: Plan, searches: Sequence[StratumSearch]) -> None:
        self._plan, self._searches = plan, searches
        self._pending: list[Pending] = []

    def __len__(self) -> int:
        return len(self._pending)

    def pop(self) -> Pending | None:
        """Return what runs next: all strata in turn, seed by seed, in the same order however often the sweep was
        interrupted. Points that have failed are dropped."""
        while self._pending:
            following = min(self._pending, key=self._turn)
            self._pending.remove(following)
            if following[0].state != "failed":
                return following
        return None

    def choose(self, search: StratumSearch) -> None:
        """Queue the points that the other seeds measure in a stratum: the chosen one, or all."""
        self._pending = [item for item in self._pending if item[0].stratum_search is not search]
        found = choose(self._plan, search)
        newest, measured = _newest_choice(search)
        number = newest if found is not None and measured == found[0].params else newest + 1
        there = {
            (self._point(t), t.seed) for t in search.compared.values() if t.tags.get(Tag.CHOICE, number) == str(number)
        }
        for point in [found[0]] if found is not None else []:
            self._queue(point, choice_tags(found[1], number) if found else {}, there)
        if self._plan.spec.replicate == "all":
            for point in search.trials.values():
                if point.state != "failed" and (found is None or point is not found[0]):
                    self._queue(point, COMPARE_TAGS, {(self._point(t), t.seed) for t in search.compared.values()})

    def _queue(self, point: Trial, tags: dict[str, str], there: set[tuple[str, int]]) -> None:
        for seed in self._plan.spec.seeds[1:]:
            if (self._point(point), seed) not in there:
                self._pending.append((point, seed, tags))

    def _turn(self, pending: Pending) -> tuple[int, int]:
        point, seed, _ = pending
        return self._plan.spec.seeds.index(seed), self._searches.index(point.stratum_search)

    def _point(self, trial: Trial) -> str:
        return self._plan.point_id(trial.stratum_search.stratum, trial.params)


def _newest_choice(search: StratumSearch) -> tuple[int, dict[str, Scalar] | None]:
    """Return the number of the newest measured choice and its params, or 0 and None if nothing was chosen yet."""
    trials = [*search.trials.values(), *search.compared.values()]
    newest = max(trials, key=_choice_number, default=None)
    if newest is None or not _choice_number(newest):
        return 0, None
    return _choice_number(newest), newest.params


def _choice_number(trial: Trial) -> int:
    return int(trial.tags.get(Tag.CHOICE, 0))
