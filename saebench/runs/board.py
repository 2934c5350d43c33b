"""The state of a sweep for display: filled by the scheduler, or read from `runs/<name>/`."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.config import TrialConfig
from saebench.runs import events
from saebench.runs.events import Event
from saebench.runs.files import DamagedError
from saebench.runs.paths import SweepPaths
from saebench.runs.preparing import Preparing
from saebench.runs.state import Row, TrialState, load_state, read_config
from saebench.runs.stopped import stopped_sentence

FVU = "eval/fvu"
Cell = tuple[str, str]
"""Arm and sparsity, such as ("topk", "k=16")."""


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
    samples_before: int = 0
    """Samples when the attempt started."""
    held_out: bool = False
    """Whether `fvu` and `l0` are those of the validation part."""
    parameters: str = ""
    """Values of what the sweep searches, such as "lr 0.0031, batch_size 256"."""
    curve: list[float] = field(default_factory=list)
    """The objective at the evaluations so far."""
    evaluated: int = 0
    """Samples of the newest evaluation."""
    begun: bool = False
    """Whether the attempt has sent an event."""

    def see(self, event: Event, objective: str = FVU) -> None:
        """Take the event's values. Once there are validation values, those of training batches (which may be a tenth of
        them) are no longer shown."""
        self.begun = True
        self.samples = max(self.samples, event.samples)
        if event.type == "eval" and event.samples > self.evaluated:
            self.evaluated = event.samples
            if objective in event.values:
                self.curve.append(event.values[objective])
        self.held_out = self.held_out or "eval/fvu" in event.values
        for prefix in ("eval/",) if self.held_out else ("train/",):
            self.fvu = event.values.get(prefix + "fvu", self.fvu)
            self.l0 = event.values.get(prefix + "l0", self.l0)

    @property
    def fraction(self) -> float:
        return min(1.0, self.samples / self.total)

    @property
    def doing(self) -> str:
        """What the trial does, if its bar does not show it."""
        if not self.begun:
            return "starting"
        if self.samples < self.total:
            return ""
        return "test texts" if self.evaluated >= self.total else "evaluating, saving"


@dataclass
class Pace:
    """How fast this sweep's trials train, from those that have ended."""

    trials: int = 0
    samples: int = 0
    seconds: float = 0.0

    def add(self, state: TrialState) -> None:
        """Count a trial that has ended; others are ignored."""
        if state.ended and state.seconds > 0:
            self.trials += 1
            self.samples += state.samples
            self.seconds += state.seconds


@dataclass(frozen=True)
class Best:
    """The best complete trial of an arm and sparsity so far."""

    value: float
    number: int


@dataclass
class Board:
    """A sweep at one moment."""

    name: str
    objective: str = FVU
    maximize: bool = False
    cells: dict[str, Cell] = field(default_factory=dict)
    """Stratum -> its arm and sparsity (`forecast.cells`)."""
    searched: tuple[str, ...] = ()
    """Parameters that the sweep searches."""
    best: dict[Cell, Best] = field(default_factory=dict)
    left: int = 0
    """Estimated number of trials that are still to start (`forecast.trials_left`)."""
    pace: Pace = field(default_factory=Pace)
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
    """The problem of tracking, if any."""
    preparing: Preparing | None = None
    """The progress of reading and encoding texts, before the first trial."""
    attended: bool = True
    """Whether a scheduler holds it; without one, time does not count."""

    def see_ended(self, state: TrialState) -> None:
        """Keep the trial's value if it is the best of its arm and sparsity so far; a trial that is not complete has
        none."""
        value = state.values.get(self.objective)
        if state.state != "complete" or value is None:
            return
        cell = self.cells.get(state.stratum, (state.stratum, ""))
        known = self.best.get(cell)
        if known is None or (value > known.value if self.maximize else value < known.value):
            self.best[cell] = Best(value, state.number)

    def see_stopped(self, state: TrialState) -> None:
        """Add the sentence on why the pruner has stopped a trial."""
        self.verdicts.append(self.stopped(state))

    def stopped(self, state: TrialState) -> str:
        """Return the sentence on why the pruner has stopped a trial."""
        return stopped_sentence(state.number, state.judged, state.total, state.verdict, self.objective)

    def parameters(self, config: TrialConfig | None) -> str:
        """Return a trial's values of what the sweep searches."""
        if config is None:
            return ""
        held = {**config.train.model_dump(), **config.sae.model_dump()}
        return ", ".join(f"{name} {_short(held[name])}" for name in self.searched if held.get(name) is not None)

    @property
    def planned(self) -> int:
        """Number of trials that exist or are still to start."""
        return sum(self.counts.values()) + self.left

    @property
    def ended(self) -> int:
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]

    def rate(self) -> float | None:
        """Trials per minute since the scheduler started; None before the first has ended."""
        minutes = (time.time() - self.started) / 60
        done = self.ended - self.ended_before
        return done / minutes if done and minutes > 0 else None

    def eta(self, now: float | None = None) -> float | None:
        """Return the seconds until every trial has ended, on the slots that are busy now and at the pace so far (of all
        trials of this sweep, over all starts); None before the pace is known."""
        now = time.time() if now is None else now
        running = list(self.running.values())
        samples = self.pace.samples + sum(r.samples - r.samples_before for r in running)
        seconds = self.pace.seconds + sum(max(0.0, now - r.since) for r in running)
        if samples <= 0 or seconds <= 0 or not running:
            return None
        typical = self.pace.samples / self.pace.trials if self.pace.trials else running[0].total
        waiting = self.counts["planned"] + self.counts["interrupted"] + self.left
        work = sum(r.total - r.samples for r in running) + waiting * typical
        return work * seconds / samples / len(running)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read_board(
    paths: SweepPaths,
    since: float | None = None,
    left: Callable[[list[Row]], int] = lambda _: 0,
    note: Callable[[str], None] | None = None,
    board: Board | None = None,
) -> Board:
    """Return the board of a sweep from its files, whether or not a scheduler holds it. since: when it began to, in
    seconds since the epoch; without it there is no pace. `left`: estimates the trials to come from the existing ones.
    `note`: receives a line per file that cannot be read; by default the board's notes. `board`: an empty one to fill,
    with the sweep's objective and strata. Only the rows of all trials are in memory at once."""
    board = board or Board(paths.name)
    board.started, board.attended = since or board.started, since is not None
    judged: list[tuple[float, str]] = []
    rows: list[Row] = []
    for state in read_states(paths, note or board.notes.append):
        rows.append(state.row())
        board.pace.add(state)
        board.counts[state.state] += 1
        if state.ended and max((a.ended or 0.0 for a in state.attempts), default=0.0) < board.started:
            board.ended_before += 1
        if state.state == "failed":
            board.failures[state.number] = state.reason
        elif state.state == "running":
            trial = paths.trial(state.number)
            row = _running(state, trial.events, board.objective)
            row.parameters = board.parameters(read_config(trial)) if board.searched else ""
            board.running[state.number] = row
        board.see_ended(state)
        if state.verdict.get("verdict") == "prune":
            line = board.stopped(state)
            judged = sorted([*judged, (max((a.ended or a.started for a in state.attempts), default=0.0), line)])[-6:]
    board.left = left(rows)
    board.verdicts.extend(line for _, line in judged)
    board.slots = [r.slot for r in board.running.values()]
    return board


def read_states(paths: SweepPaths, note: Callable[[str], None]) -> Iterator[TrialState]:
    """Yield the state of every trial that has one; a file that cannot be read is one line to `note`."""
    for trial in paths.trials():
        try:
            state = load_state(trial)
        except DamagedError as error:
            note(str(error))
            continue
        if state is not None:
            yield state


def _running(state: TrialState, events_file: Path, objective: str) -> Running:
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
        if event.attempt < row.attempt:
            row.samples_before = max(row.samples_before, event.samples)
        row.see(event, objective)
    return row
