"""Where attempts run: the interface that the scheduler uses, and the messages that it receives.

An executor owns processes and devices; it does not know Optuna, MLflow or the rules for retries. The scheduler picks
the slot, polls for messages, answers `eval` events and decides what follows an exit.
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
"""The function that an attempt runs by default, as "module:function"."""


@dataclass(frozen=True)
class Attempt:
    """One try at a trial."""

    number: int
    attempt: int
    """1 for the first try."""
    config: TrialConfig
    paths: TrialPaths

    def request(self, cache_dir: Path, target: str, **where: Any) -> Request:
        """Return the request to a worker; `where`: the fields of Request about its device and process."""
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
    """The worker of trial `number` recorded `event` (or passed a mark again that is already recorded).

    An `eval` event waits for `Executor.answer`; without an answer the worker continues after half a minute.
    """

    number: int
    event: Event


@dataclass(frozen=True)
class ExitMessage:
    """The attempt has ended and its process group has exited; sent once per attempt, after all its events.

    kind None: no failure; it ended after a `done` or a `left` event. killed: ended by `stop(number, "kill")`. detail:
    one readable line.
    """

    number: int
    kind: FailureKind | None
    detail: str


@dataclass(frozen=True)
class NoteMessage:
    """A readable line about the executor itself: a machine that joined, was lost or will be reclaimed."""

    text: str


Message = EventMessage | ExitMessage | NoteMessage


class Executor(Protocol):
    """Not thread-safe: one thread calls all methods except `wake`."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        """Slots in service, including busy ones; fewer after `quarantine`. Those of a cluster may change."""
        ...

    def encoders(self) -> Sequence[str | Launch]:
        """Devices of this machine, or places on others, on which `stores.cache.build` may encode."""
        ...

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:
        """Wait for the workers of an earlier scheduler of this sweep to exit, kill those that do not, and copy their
        files to the sweep's directory. Called once, before the first trial of this start; the trials need the cache
        entries `cache_keys`."""
        ...

    def start(self, attempt: Attempt, slot: Slot) -> None:
        """Start `attempt` on `slot` and return at once. Raises RuntimeError if the slot is busy or the trial is
        running.

        A slot is identified by its id: the caller may change memory_fraction for a trial that has the device alone.

        The slot is free again once `poll` has returned the attempt's `ExitMessage`.
        """
        ...

    def poll(self, timeout: float) -> list[Message]:
        """Return new messages, in order per trial; wait up to `timeout` seconds for the first."""
        ...

    def wake(self) -> None:
        """Make a waiting `poll` (or else the next one) return at once. Any thread may call it."""
        ...

    def answer(self, number: int, verdict: Verdict) -> None:
        """Send the verdict on the oldest unanswered `eval` event of trial `number`; ignored if the attempt has
        ended."""
        ...

    def stop(self, number: int, how: How) -> None:
        """leave: write a checkpoint and exit at the next step. kill: send SIGKILL to the process group. Idempotent."""
        ...

    def set_demand(self, trials: int) -> None:
        """Say how many trials run or may still be started; called again when that changes. An executor on a cluster
        gives back devices beyond that number and asks for them again if devices are lost."""
        ...

    def quarantine(self, slot: Slot) -> None:
        """Take the device of `slot`, with all its slots, out of service; attempts that run there continue."""
        ...

    def close(self) -> None:
        """Kill running attempts and release all resources; the executor cannot be used afterwards. Idempotent."""
        ...


def check_free(attempt: Attempt, slot: Slot, slots: Iterable[Slot], leased: Mapping[int, Slot]) -> None:
    """Check that `attempt` may start; `leased`: the slots of the running trials, by number. Slots are compared by id: a
    lease may have another share of memory than its slot. Raises RuntimeError."""
    if attempt.number in leased:
        raise RuntimeError(f"trial {attempt.number} is running")
    if slot.id not in {known.id for known in slots} or slot.id in {taken.id for taken in leased.values()}:
        raise RuntimeError(f"slot {slot.name} is not free")
