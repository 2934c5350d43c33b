"""Every change of a trial's state, written in the order that survives a crash: `state.json`, then Optuna, then MLflow.

A scheduler that dies in between leaves a file that is ahead of the others; `recovery.py` repeats what they lack, and
repeating it twice changes nothing.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter

from saebench.config import TrialConfig
from saebench.errors import UserError
from saebench.executors import Slot
from saebench.runs.board import Board, Running
from saebench.runs.events import Event, FailureKind, Verdict
from saebench.runs.files import file_sum
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import AttemptRecord, TrialState, TrialStateName, read_config, write_config
from saebench.runs.tags import Tag
from saebench.scheduler.failures import FAILURE_LABELS
from saebench.scheduler.protocols import Search, Tracker


def reason_of(kind: FailureKind, detail: str) -> str:
    """Return a failure as one readable line."""
    return f"{FAILURE_LABELS[kind]}: {detail}" if detail else FAILURE_LABELS[kind]


class MovedError(UserError):
    """The sweep's directory was moved or deleted: nothing more may be written there."""

    exit_code = 75


class Ledger:
    """The trials of a sweep, by number. The scheduler decides by these counts; the board displays them."""

    def __init__(self, paths: SweepPaths, search: Search, tracker: Tracker, board: Board) -> None:
        self.paths = paths
        self.board = board
        self.counts: Counter[str] = board.counts
        """Trials by state."""
        self.failures: dict[int, str] = board.failures
        """Trial -> why it failed; only the trials that are failed now."""
        self.states: dict[int, TrialState] = {}
        self.configs: dict[int, TrialConfig] = {}
        self.samples = 0
        """Samples trained on, over all trials."""
        self._search = search
        self._tracker = tracker
        self._pruned: list[int] = []
        """Trials to be pruned that are not recorded yet."""
        self._moved, self._next_count = True, 0.0
        paths.root.mkdir(parents=True, exist_ok=True)
        self._place = _identity(paths)

    @property
    def ended(self) -> int:
        """Trials that have ended."""
        return self.counts["complete"] + self.counts["pruned"] + self.counts["failed"]

    def check_place(self) -> None:
        """Raises MovedError once the directory was moved or deleted: writing would make another one in its place."""
        if _identity(self.paths) != self._place:
            raise MovedError(f"{self.paths.root}: was moved or deleted while the sweep ran")

    def adopt(self, config: TrialConfig, state: TrialState) -> None:
        """Add a trial that exists on disk."""
        self.configs[config.number], self.states[config.number] = config, state
        self.counts[state.state] += 1
        self.samples += state.samples
        self.board.pace.add(state)
        self.board.see_ended(state)
        if state.state == "failed":
            self.failures[state.number] = state.reason

    def open(self, config: TrialConfig) -> None:
        """Open a trial that the search has just returned. If the directory of its number holds another trial, which
        Optuna's journal has lost, rename that directory."""
        self.check_place()
        trial = self.paths.trial(config.number)
        if config.number in self.states:
            return
        if trial.root.exists() and read_config(trial) not in (None, config):
            self.set_aside(config.number)
        write_config(trial, config)
        state = TrialState.of(config)
        state.search = self._search.tags(config.number)
        self.adopt(config, state)

    def set_aside(self, number: int) -> None:
        """Rename the directory of a trial that the search does not know."""
        root = self.paths.trial(number).root
        root.rename(root.with_name(f"{root.name}.lost-{time.time_ns()}"))

    def start(self, number: int, slot: Slot) -> int:
        """Start a new attempt on `slot`; return its number."""
        state = self.states[number]
        attempt = len(state.attempts) + 1
        state.attempts.append(AttemptRecord(attempt, slot.name, slot.device, time.time()))
        self._move(number, "running", "")
        self._tracker.open(
            self.configs[number],
            {Tag.STATE: "running", Tag.ATTEMPT: str(attempt), Tag.REASON: "", **state.search},
        )
        self.board.running[number] = Running(
            number,
            state.stratum,
            state.seed,
            slot.name,
            attempt,
            state.total,
            samples=state.samples,
            samples_before=state.samples,
            parameters=self.board.parameters(self.configs[number]),
        )
        return attempt

    def see(self, number: int, event: Event) -> None:
        """Update the progress in memory; the events are recorded already."""
        state = self.states[number]
        self.samples += max(0, event.samples - state.samples)
        state.samples = max(state.samples, event.samples)
        if event.type in ("eval", "done"):
            state.values = dict(event.values)
        if event.type == "done":
            state.files = event.files()
        if number in self.board.running:
            self.board.running[number].see(event, self.board.objective)

    def judge(self, number: int, event: Event) -> Verdict:
        """Report an evaluation to the search and return its verdict, to be sent after the next `commit`: GO at a mark
        that was judged before, and at the last one, because the trial ends there."""
        state = self.states[number]
        if event.samples <= state.judged:
            return Verdict.GO
        decision = self._search.report(number, event.samples, event.values)
        verdict = decision.verdict if event.samples < state.total else Verdict.GO
        state.judged = event.samples
        state.verdict = {"verdict": verdict.value, "samples": event.samples, **decision.numbers}
        if verdict == Verdict.PRUNE:
            self._pruned.append(number)
            self.board.see_stopped(state)
        return verdict

    def commit(self) -> None:
        """Make the search's records durable; then the verdicts may be sent. state.json is written only for trials to be
        pruned: the journal has the judged marks of the others."""
        self._search.commit()
        for number in self._pruned:
            self._write(number)
        self._pruned.clear()

    def finish(self, number: int, end: TrialStateName, reason: str = "", kind: FailureKind | None = None) -> None:
        """Record that a trial is complete, pruned or failed."""
        state = self.states[number]
        state.close_attempt(kind, reason)
        state.kind = kind
        if end == "complete":
            state.files |= event_file(self.paths.trial(number))
        self._move(number, end, reason)
        self.board.pace.add(state)
        self.board.see_ended(state)
        if end == "failed":
            self.failures[number] = reason
        self.tell(number)
        self._tracker.close_trial(number, state.state, state.reason, self._tags(state))

    def tell(self, number: int) -> None:
        """Record in Optuna how the trial ended."""
        state = self.states[number]
        self._search.tell(number, state.state, state.values, state.kind, state.verdict)

    def fail_attempt(self, number: int, kind: FailureKind, detail: str) -> None:
        """Record a failed attempt that another one will follow."""
        self.states[number].close_attempt(kind, detail)
        self._move(number, "interrupted", reason_of(kind, detail))

    def interrupt(self, number: int, reason: str) -> None:
        """Record that a trial exited before its end and will be resumed later; in Optuna it is still running."""
        state = self.states[number]
        state.close_attempt()
        self._move(number, "interrupted", reason)
        self._tracker.close_trial(number, "interrupted", reason, self._tags(state))

    def reopen(self, number: int) -> None:
        """Reopen a failed trial for another attempt."""
        self._search.reopen(number)
        self.failures.pop(number, None)
        state = self.states[number]
        self.counts[state.state] -= 1
        state.reset_failures()
        self.counts[state.state] += 1
        self._write(number)

    def refresh_board(self) -> None:
        """Show on the board how far MLflow is behind, and why."""
        unsent, error = self._tracker.lag()
        self.board.tracker = f"{error}; {unsent} events wait on disk" if error else ""

    def refresh_left(self) -> None:
        """Show on the board how many trials are left. Counted after a change of a trial, in a sweep of many trials less
        often, so that it takes at most a twentieth of the time."""
        begun = time.monotonic()
        if self._moved and begun >= self._next_count:
            self.board.left, self._moved = self._search.left(), False
            now = time.monotonic()
            self._next_count = now + 20 * (now - begun)

    def numbers(self, *states: TrialStateName) -> list[int]:
        """Return the trials in one of these states, in order."""
        return sorted(n for n, s in self.states.items() if s.state in states)

    def _move(self, number: int, to: TrialStateName, reason: str) -> None:
        state = self.states[number]
        self.counts[state.state] -= 1
        self.counts[to] += 1
        state.state, state.reason, self._moved = to, reason, True
        if to != "running":
            self.board.running.pop(number, None)
        self._write(number)

    def rewrite(self, number: int) -> None:
        """Write state.json again."""
        self._write(number)

    def _write(self, number: int) -> None:
        self.check_place()
        self.states[number].write(self.paths.trial(number))

    @staticmethod
    def _tags(state: TrialState) -> dict[str, str]:
        tags = {Tag.ATTEMPT: str(len(state.attempts)), Tag.SECONDS: f"{state.seconds:.1f}", **state.search}
        if state.kind:
            tags[Tag.FAILURE] = state.kind
        if state.verdict:
            tags[Tag.VERDICT] = json.dumps(state.verdict)
        return tags


def event_file(trial: TrialPaths) -> dict[str, tuple[int, int]]:
    """Return size and crc32 of a trial's events.jsonl by its name, for `TrialState.files`; empty if it is missing."""
    return {trial.events.name: file_sum(trial.events)} if trial.events.is_file() else {}


def _identity(paths: SweepPaths) -> tuple[int, int] | None:
    """Return an id of the sweep's directory that differs from another one of the same name; None if it does not
    exist."""
    try:
        found = os.stat(paths.root)
    except OSError:
        return None
    return found.st_dev, found.st_ino
