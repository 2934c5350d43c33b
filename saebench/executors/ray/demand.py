"""Agents that a sweep no longer needs: given back to the cluster, asked for again after a loss. No Ray."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from saebench.executors.ray.shares import Share


def surplus(idle: Iterable[tuple[int, int]], spare: int) -> list[int]:
    """Return the numbers of the idle agents (number, slots) that can go, if `spare` slots more than needed are there.
    Those that came last go first."""
    found = []
    for number, slots in sorted(idle, reverse=True):
        if slots <= spare:
            spare -= slots
            found.append(number)
    return found


@dataclass
class Demand:
    """How many slots the scheduler needs, and the shares of the cluster that it gave back."""

    slots: int | None = None
    """None: as many as there are."""
    given_back: list[Share] = field(default_factory=list)

    def spare(self, there: int) -> int:
        """Return how many of `there` slots are more than needed, negative if slots are missing."""
        return 0 if self.slots is None else there - self.slots

    def accepts(self, share: Share, there: int) -> bool:
        """Return whether an agent is to be asked for; else remember its share."""
        if self.slots is None or there < self.slots:
            return True
        self.given_back.append(share)
        return False
