"""Trials that wait for a slot, and which slot they may have."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from saebench.executors import Slot
from saebench.runs.events import Event


@dataclass
class Job:
    """A trial that waits for a slot."""

    number: int
    avoid: str = ""
    """Device on which it crashed; it gets another one if there is one."""
    alone: str = ""
    """Device that it needs for itself."""


@dataclass
class Active:
    """A trial that is running; times are of the scheduler's clock."""

    number: int
    slot: Slot
    started: float
    alive: float
    """Time of its last event or heartbeat."""
    leaving: float | None = None
    """When it was asked to leave."""
    why: str = ""
    """Why it was asked to leave, or was killed."""
    end: Event | None = None
    """Its `done` or `left`."""
    stalled: bool = False
    alone: bool = False


class Queue:
    """First come, first served, as far as the devices allow."""

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._jobs = deque(Job(n) for n in numbers)

    def __len__(self) -> int:
        return len(self._jobs)

    def numbers(self) -> list[int]:
        return [job.number for job in self._jobs]

    def put(self, job: Job, *, first: bool = False) -> None:
        (self._jobs.appendleft if first else self._jobs.append)(job)

    def alone(self) -> frozenset[str]:
        """Devices that a waiting trial needs for itself."""
        return frozenset(job.alone for job in self._jobs if job.alone)

    def take(self, slot: Slot, devices: Collection[str]) -> Job | None:
        """Return the next job for `slot`, which is not reserved; `devices` are those in service. A job that needs the
        slot's device for itself comes first."""
        job = next((job for job in self._jobs if job.alone == slot.device), None)
        job = job or next((job for job in self._jobs if _fits(job, slot, devices)), None)
        if job is not None:
            self._jobs.remove(job)
        return job


def _fits(job: Job, slot: Slot, devices: Collection[str]) -> bool:
    elsewhere = job.alone in devices and job.alone != slot.device
    return not elsewhere and not (job.avoid == slot.device and len(devices) > 1)


class Seats:
    """Slots and devices while a turn of the loop fills them; used once per free slot."""

    def __init__(self, slots: Collection[Slot], active: Collection[Active], wanted: frozenset[str]) -> None:
        """`wanted`: devices that a waiting trial needs for itself."""
        busy = {a.slot.id for a in active}
        self.devices = {slot.device for slot in slots}
        """In service."""
        self.free = [slot for slot in slots if slot.id not in busy]
        self._occupied = {a.slot.device for a in active}
        self._closed = wanted | {a.slot.device for a in active if a.alone}

    def reserved(self, slot: Slot) -> bool:
        """Return whether `slot` must stay empty, because a trial needs (or has) its device for itself."""
        return slot.device in self._occupied and slot.device in self._closed

    def take(self, slot: Slot, job: Job) -> None:
        """Record that `job` will run on `slot`."""
        self._occupied.add(slot.device)
        if job.alone:
            self._closed |= {slot.device}
