"""Where attempts run: the surface that the scheduler sees, and the messages that come back.

An executor owns processes and devices and nothing else: it knows no Optuna, no MLflow and no retry rule. The scheduler
picks the slot, polls for messages, answers `eval` events and decides what an exit means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from saebench.config import TrialConfig
from saebench.devices import Slot
from saebench.runs.events import Event, FailureKind, Verdict
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.worker import Request

if TYPE_CHECKING:
    from saebench.stores.child_process import Launch

__all__ = [
    "TARGET", "Attempt", "EventMessage", "Executor", "ExitMessage", "How", "Message", "NoteMessage", "Slot",
    "check_free",
]  # fmt: skip

How = Literal["leave", "kill"]
TARGET = "saebench.trial.run:run_trial"
"""What an attempt runs, unless somebody names another "module:function"."""


@dataclass(frozen=True)
class Attempt:
    """One try at a trial."""

    number: int
    attempt: int
    """1 for the first try."""
    config: TrialConfig
    paths: TrialPaths

    def request(self, cache_dir: Path, target: str, **where: Any) -> Request:
        """Return what a worker is asked to do; `where`: the fields of Request about its device and process."""
        return Request(
            number=self.number,
            attempt=self.attempt,
            config=self.config.model_dump(mode="json"),
            root=str(self.paths.root),
            cache_dir=str(cache_dir),
            target=target,
            **where,
        )


@dataclass(frozen=True)
class EventMessage:
    """The worker of trial `number` recorded `event` (or passed a mark again that is on record already).

    An `eval` event is waiting for `Executor.answer`; the worker goes on by itself after half a minute.
    """

    number: int
    event: Event


@dataclass(frozen=True)
class ExitMessage:
    """The attempt is over and its process group is gone; exactly once per attempt, after all its events.

    kind None: it ended as it should, after a `done` or a `left` event. killed: it was ended by `stop(number, "kill")`,
    for whatever reason the caller had. detail: one line for people.
    """

    number: int
    kind: FailureKind | None
    detail: str


@dataclass(frozen=True)
class NoteMessage:
    """One line for people about the executor itself: a machine that came, went or is about to go."""

    text: str


Message = EventMessage | ExitMessage | NoteMessage


class Executor(Protocol):
    """Not thread-safe: one thread calls, except for `wake`."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots that are in service, busy ones included; fewer after `quarantine`. A cluster's may come and go."""
        ...

    def encoders(self) -> Sequence[str | Launch]:
        """Devices of this machine, or places on others, on which `stores.cache.build` may encode."""
        ...

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:
        """Wait for the workers of an earlier scheduler of this sweep to leave, kill those that do not, and bring what
        they wrote to the sweep's directory. Called once, before the first trial of this start; the trials will need the
        cache's entries `cache_keys`."""
        ...

    def start(self, attempt: Attempt, slot: Slot) -> None:
        """Begin `attempt` on `slot`; returns at once. RuntimeError when the slot is busy or the trial is running.

        A slot is known by its id: the caller may give another memory_fraction, to a trial that has the device alone.

        The slot is free again when the attempt's `ExitMessage` has come out of `poll`.
        """
        ...

    def poll(self, timeout: float) -> list[Message]:
        """What happened, in order per trial; waits up to `timeout` seconds for the first message."""
        ...

    def wake(self) -> None:
        """Make a `poll` that waits return now, or the next one at once. May be called by any thread."""
        ...

    def answer(self, number: int, verdict: Verdict) -> None:
        """The verdict on the oldest unanswered `eval` event of trial `number`; ignored when the attempt is over."""
        ...

    def stop(self, number: int, how: How) -> None:
        """leave: checkpoint and leave at the next step. kill: SIGKILL to the process group now. Idempotent."""
        ...

    def set_demand(self, trials: int) -> None:
        """Say how many trials run or may still be started; called again when that changes. An executor on a cluster
        gives back devices beyond that number and asks for them again if devices are lost."""
        ...

    def quarantine(self, slot: Slot) -> None:
        """Take the device of `slot` out of service: all its slots; attempts that run there are not touched."""
        ...

    def close(self) -> None:
        """Kill what still runs and give everything back; the executor is of no use afterwards. Idempotent."""
        ...


def check_free(attempt: Attempt, slot: Slot, slots: Iterable[Slot], leased: Mapping[int, Slot]) -> None:
    """What every executor asks before it starts: `leased` are the slots of the running trials, by number. Slots are
    told apart by id: a lease may differ from its slot in the share of memory. Raises RuntimeError."""
    if attempt.number in leased:
        raise RuntimeError(f"trial {attempt.number} is running")
    if slot.id not in {known.id for known in slots} or slot.id in {taken.id for taken in leased.values()}:
        raise RuntimeError(f"slot {slot.name} is not free")
