"""Trials that wait for a slot, and which slot they may have."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from saebench.executors import Slot
from saebench.runs.events import Event


@dataclass
class Job:
    """A trial that waits for a slot to go on."""

    number: int
    avoid: str = ""
    """Device on which it crashed; another one is taken where there is another."""
    alone: str = ""
    """Device that it needs for itself."""


@dataclass
class Active:
    """A trial that is running; times are of the scheduler's clock."""

    number: int
    slot: Slot
    started: float
    alive: float
    """When it last gave a sign of life."""
    leaving: float | None = None
    """When it was told to leave."""
    why: str = ""
    """Why it was told to leave, or was killed."""
    end: Event | None = None
    """Its `done` or `left`."""
    stalled: bool = False
    alone: bool = False


class Queue:
    """First come, first served, as far as the devices allow."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._jobs = deque(Job(n) for n in numbers)

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def numbers(self) -> list[int]:
        return [job.number for job in self._jobs]

    def put(self, job: Job, *, first: bool = False) -> None:
        (self._jobs.appendleft if first else self._jobs.append)(job)

    def reserved(self, slot: Slot, active: Iterable[Active]) -> bool:
        """Must `slot` stay empty, because a trial needs (or has) its device for itself?"""
        here = [a for a in active if a.slot.device == slot.device]
        return bool(here) and (any(a.alone for a in here) or any(job.alone == slot.device for job in self._jobs))

    def take(self, slot: Slot, devices: Collection[str]) -> Job | None:
        """The next job for `slot`, which is not reserved; `devices` are those in service."""
        for job in sorted(self._jobs, key=lambda job: job.alone != slot.device):
            elsewhere = job.alone in devices and job.alone != slot.device
            if not elsewhere and not (job.avoid == slot.device and len(devices) > 1):
                self._jobs.remove(job)
                return job
        return None
