"""What a person watching a sweep wants to see, built by the scheduler as it goes or read from `runs/<name>/`."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.runs import events
from saebench.runs.events import Event
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState, read_state


@dataclass
class Running:
    """A trial on a slot."""

    number: int
    stratum: str
    seed: int
    slot: str
    attempt: int
    total: int
    samples: int = 0
    fvu: float | None = None
    l0: float | None = None
    since: float = field(default_factory=time.time)
    """When the attempt started, in seconds since the epoch."""
    held_out: bool = False
    """Whether `fvu` and `l0` are those of the hold-out."""

    def see(self, event: Event) -> None:
        """Take what the event says. Once there are hold-out values, those of training batches (which may be a tenth of
        them) are not shown any more."""
        self.samples = max(self.samples, event.samples)
        self.held_out = self.held_out or "eval/fvu" in event.values
        for prefix in ("eval/",) if self.held_out else ("train/",):
            self.fvu = event.values.get(prefix + "fvu", self.fvu)
            self.l0 = event.values.get(prefix + "l0", self.l0)

    @property
    def fraction(self) -> float:
        return min(1.0, self.samples / self.total)


@dataclass
class Board:
    """A sweep at one moment."""

    name: str
    planned: int = 0
    """Upper bound on the number of trials."""
    counts: Counter[str] = field(default_factory=Counter)
    running: dict[int, Running] = field(default_factory=dict)
    slots: list[str] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    """Trial -> why it failed; only the trials that are failed now."""
    verdicts: deque[str] = field(default_factory=lambda: deque(maxlen=6))
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=6))
    stopping: str = ""
    """Why no new trials are started, if that is so."""
    started: float = field(default_factory=time.time)
    ended_before: int = 0
    """Trials that had ended when this scheduler started."""
    tracker: str = ""
    """What is wrong with tracking, if anything."""
    attended: bool = True
    """Whether a scheduler is at work on it; without one, time does not count and `planned` is only a bound."""

    @property
    def ended(self) -> int:
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]

    def rate(self) -> float | None:
        """Trials per minute since the scheduler started; None before the first has ended."""
        minutes = (time.time() - self.started) / 60
        done = self.ended - self.ended_before
        return done / minutes if done and minutes > 0 else None

    def eta(self) -> float | None:
        """Seconds until every planned trial has ended, if all goes on as it did; None before there is a measure."""
        done = self.ended - self.ended_before + sum(r.fraction for r in self.running.values())
        left = self.planned - self.ended - sum(r.fraction for r in self.running.values())
        if done < 0.05 or left < 0:
            return None
        return (time.time() - self.started) / done * left


_SAID_OTHERWISE = frozenset({"verdict", "samples", "pruner"})


def verdict_line(number: int, samples: int, verdict: Mapping[str, Any]) -> str:
    """A verdict and its numbers, for people."""
    numbers = ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in verdict.items()
        if key not in _SAID_OTHERWISE and value is not None
    )
    by = f"{verdict['pruner']}: " if verdict.get("pruner") else ""
    return f"trial {number:04d} at {samples:,}: {verdict.get('verdict', '?')} ({by}{numbers})"


def read_board(paths: SweepPaths, planned: int = 0, since: float | None = None) -> Board:
    """The board of a sweep from its files, whether or not a scheduler is at work on it. since: when it began to be, in
    seconds since the epoch; without it there is no pace."""
    board = Board(paths.name, planned)
    board.started, board.attended = since or board.started, since is not None
    judged: list[tuple[float, str]] = []
    for trial in paths.trials():
        state = read_state(trial)
        if state is None:
            continue
        board.counts[state.state] += 1
        if state.ended and max((a.ended or 0.0 for a in state.attempts), default=0.0) < board.started:
            board.ended_before += 1
        if state.state == "failed":
            board.failures[state.number] = state.reason
        elif state.state == "running":
            board.running[state.number] = _running(state, trial.events)
        if state.verdict.get("verdict") == "prune":
            line = verdict_line(state.number, state.judged, state.verdict)
            judged.append((trial.state.stat().st_mtime, line))
    board.verdicts.extend(line for _, line in sorted(judged)[-6:])
    board.slots = [r.slot for r in board.running.values()]
    return board


def _running(state: TrialState, events_file: Path) -> Running:
    last = state.attempts[-1] if state.attempts else None
    row = Running(
        state.number,
        state.stratum,
        state.seed,
        last.slot if last else "?",
        last.attempt if last else 0,
        state.total,
        since=last.started if last else time.time(),
    )
    for event, _ in events.read(events_file):
        row.see(event)
    return row
