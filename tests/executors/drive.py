"""Run attempts on an executor to their end, as a scheduler would."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import toys

from saebench.executors import Attempt, EventMessage, Executor, ExitMessage
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths

Answer = Callable[[int, Event], Verdict | None]


@dataclass
class Ended:
    exit: ExitMessage
    events: list[Event] = field(default_factory=list)

    @property
    def types(self) -> list[str]:
        return [event.type for event in self.events]


def go(_: int, __: Event) -> Verdict | None:
    """The verdict on every eval."""
    return Verdict.GO


def trial(folder: Path, toy: str, number: int = 0, attempt: int = 1, samples: int = 100) -> Attempt:
    return Attempt(number, attempt, toys.config(toy, number, samples), TrialPaths(folder / f"{number:04d}"))


def drive(executor: Executor, attempts: Iterable[Attempt], answer: Answer = go, limit: float = 60) -> dict[int, Ended]:
    """answer sees every event; what it returns for an `eval` is the verdict (None: no answer)."""
    todo, ended = list(attempts), dict[int, Ended]()
    events: dict[int, list[Event]] = {one.number: [] for one in todo}
    free, where, end = list(executor.slots), {}, time.monotonic() + limit
    count = len(todo)
    while len(ended) < count:
        assert time.monotonic() < end, f"{set(events) - set(ended)} did not end"
        while todo and free:
            where[todo[0].number] = free.pop()
            executor.start(todo[0], where[todo.pop(0).number])
        for message in executor.poll(1):
            if isinstance(message, EventMessage):
                assert message.number not in ended, "an event after the exit"
                events[message.number].append(message.event)
                verdict = answer(message.number, message.event)
                if message.event.type == "eval" and verdict is not None:
                    executor.answer(message.number, verdict)
            else:
                assert message.number not in ended, "two exits"
                ended[message.number] = Ended(message, events[message.number])
                free.append(where[message.number])
    return ended


def drive_one(executor: Executor, attempt: Attempt, answer: Answer = go) -> Ended:
    return drive(executor, [attempt], answer)[attempt.number]
