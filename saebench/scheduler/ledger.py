"""Every change of a trial's state, written in the order that survives a crash: `state.json`, then Optuna, then MLflow.

Whoever dies in between leaves a file that is ahead of the others; `recovery.py` repeats what they missed, and they do
not mind hearing it twice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any, Protocol

from saebench.config import TrialConfig
from saebench.executors import Slot
from saebench.runs.board import Board, Running, verdict_line
from saebench.runs.durable import write_text
from saebench.runs.events import Event, FailureKind, Verdict
from saebench.runs.paths import SweepPaths
from saebench.runs.state import AttemptRecord, TrialState, TrialStateName, read_config
from saebench.scheduler.failures import FAILURE_LABELS
from saebench.tracking.tags import Tag


def reason_of(kind: FailureKind, detail: str) -> str:
    """A failure in one line, for people."""
    return f"{FAILURE_LABELS[kind]}: {detail}" if detail else FAILURE_LABELS[kind]


class Decision(Protocol):
    """What the search says to an evaluation."""

    @property
    def verdict(self) -> Verdict: ...
    @property
    def numbers(self) -> Mapping[str, Any]: ...


class Search(Protocol):
    """The part of `study.Search` that the scheduler uses."""

    @property
    def done(self) -> bool: ...
    def ask(self) -> TrialConfig | None: ...
    def running(self) -> list[TrialConfig]: ...
    def report(self, number: int, samples: int, values: Mapping[str, float]) -> Decision: ...
    def tell(
        self,
        number: int,
        state: Any,
        values: Mapping[str, float],
        kind: FailureKind | None,
        numbers: Mapping[str, Any],
    ) -> None: ...
    def reopen(self, number: int) -> TrialConfig: ...


class Tracker(Protocol):
    """The part of `tracking.Tracker` that the scheduler uses; nothing here blocks or raises."""

    def open(self, config: TrialConfig, tags: dict[str, str]) -> None: ...
    def close_trial(self, number: int, state: Any, reason: str, tags: dict[str, str]) -> None: ...
    def lag(self) -> tuple[int, str | None]: ...


class Ledger:
    """The trials of a sweep, by number."""

    def __init__(self, paths: SweepPaths, search: Search, tracker: Tracker, board: Board) -> None:
        self.paths = paths
        self.board = board
        self.states: dict[int, TrialState] = {}
        self.configs: dict[int, TrialConfig] = {}
        self.samples = 0
        """Samples trained on, over all trials."""
        self._search = search
        self._tracker = tracker

    def adopt(self, config: TrialConfig, state: TrialState) -> None:
        """Know a trial that exists on disk already."""
        self.configs[config.number], self.states[config.number] = config, state
        self.board.counts[state.state] += 1
        self.samples += state.samples
        if state.state == "failed":
            self.board.failures[state.number] = state.reason

    def open(self, config: TrialConfig) -> None:
        """A trial that the search has just handed out. A directory of its number that holds another trial is one that
        Optuna's journal lost; it is put aside."""
        trial = self.paths.trial(config.number)
        if config.number in self.states:
            return
        if trial.root.exists() and read_config(trial) not in (None, config):
            self.set_aside(config.number)
        write_text(trial.config, config.model_dump_json(indent=1) + "\n", durable=False)
        self.adopt(config, TrialState.of(config))

    def set_aside(self, number: int) -> None:
        """Rename the directory of a trial that nobody knows any more."""
        root = self.paths.trial(number).root
        root.rename(root.with_name(f"{root.name}.lost-{time.time_ns()}"))

    def start(self, number: int, slot: Slot) -> int:
        """A new attempt begins on `slot`; its number."""
        state = self.states[number]
        attempt = len(state.attempts) + 1
        state.attempts.append(AttemptRecord(attempt, slot.name, slot.device, time.time()))
        self._move(number, "running", "")
        self._tracker.open(self.configs[number], {Tag.STATE: "running", Tag.ATTEMPT: str(attempt), Tag.REASON: ""})
        self.board.running[number] = Running(
            number, state.stratum, state.seed, slot.name, attempt, state.total, samples=state.samples
        )
        return attempt

    def see(self, number: int, event: Event) -> None:
        """Progress; not written, the events are on record."""
        state = self.states[number]
        self.samples += max(0, event.samples - state.samples)
        state.samples = max(state.samples, event.samples)
        if event.type in ("eval", "done"):
            state.values = dict(event.values)
        if number in self.board.running:
            self.board.running[number].see(event)

    def judge(self, number: int, event: Event) -> Verdict:
        """Report an evaluation to the search, and what it says. A mark that was judged before is let pass, and so is
        the last one: the trial is at its end anyway."""
        state = self.states[number]
        if event.samples <= state.judged:
            return Verdict.GO
        decision = self._search.report(number, event.samples, event.values)
        verdict = decision.verdict if event.samples < state.total else Verdict.GO
        state.judged = event.samples
        state.verdict = {"verdict": verdict.value, "samples": event.samples, **decision.numbers}
        self._write(number)
        if verdict == Verdict.PRUNE:
            self.board.verdicts.append(verdict_line(number, event.samples, state.verdict))
        return verdict

    def finish(self, number: int, end: TrialStateName, reason: str = "", kind: FailureKind | None = None) -> None:
        """The trial is complete, pruned or failed."""
        state = self.states[number]
        state.close_attempt(kind, reason)
        state.kind = kind
        self._move(number, end, reason)
        if end == "failed":
            self.board.failures[number] = reason
        self.tell(number)
        self._tracker.close_trial(number, state.state, state.reason, self._tags(state))

    def tell(self, number: int) -> None:
        """Tell Optuna how the trial ended."""
        state = self.states[number]
        self._search.tell(number, state.state, state.values, state.kind, state.verdict)

    def fail_attempt(self, number: int, kind: FailureKind, detail: str) -> None:
        """The attempt failed and another one will follow."""
        self.states[number].close_attempt(kind, detail)
        self._move(number, "interrupted", reason_of(kind, detail))

    def interrupt(self, number: int, reason: str) -> None:
        """The trial left before its end and will go on later; for Optuna it is still running."""
        state = self.states[number]
        state.close_attempt()
        self._move(number, "interrupted", reason)
        self._tracker.close_trial(number, "interrupted", reason, self._tags(state))

    def reopen(self, number: int) -> None:
        """A failed trial gets another chance."""
        self._search.reopen(number)
        self.board.failures.pop(number, None)
        state = self.states[number]
        self.board.counts[state.state] -= 1
        state.forgive()
        self.board.counts[state.state] += 1
        self._write(number)

    def check_tracker(self) -> None:
        """Show on the board what keeps metrics from MLflow."""
        unsent, error = self._tracker.lag()
        self.board.tracker = f"{error}; {unsent} events wait on disk" if error else ""

    def numbers(self, *states: TrialStateName) -> list[int]:
        """Trials that are in one of these states, in order."""
        return sorted(n for n, s in self.states.items() if s.state in states)

    def _move(self, number: int, to: TrialStateName, reason: str) -> None:
        state = self.states[number]
        self.board.counts[state.state] -= 1
        self.board.counts[to] += 1
        state.state, state.reason = to, reason
        if to != "running":
            self.board.running.pop(number, None)
        self._write(number)

    def _write(self, number: int) -> None:
        self.states[number].write(self.paths.trial(number))

    @staticmethod
    def _tags(state: TrialState) -> dict[str, str]:
        tags = {Tag.ATTEMPT: str(len(state.attempts))}
        if state.kind:
            tags[Tag.FAILURE] = state.kind
        if state.verdict:
            tags[Tag.VERDICT] = json.dumps(state.verdict)
        return tags
