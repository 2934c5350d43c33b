"""The loop: fill the slots, read the workers' events, answer with verdicts, and stop on request.

One thread, no torch. Everything slow or fallible (training, MLflow) happens elsewhere; a turn of the loop costs time in
proportion to the running trials, not to all trials, and starts a few trials at most. The records of a turn are
committed together, and only then are its verdicts sent: no worker acts on a verdict that a crash could take back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from saebench.config import TrialConfig
from saebench.errors import StorageLostError
from saebench.executors import Attempt, EventMessage, Executor, ExitMessage, Message, NoteMessage, Slot
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import SweepPaths
from saebench.scheduler.endings import Endings
from saebench.scheduler.ledger import Ledger
from saebench.scheduler.placement import Active, Job, Queue, Seats
from saebench.scheduler.protocols import Search, Signals, View
from saebench.scheduler.requests import Halt, retry_request, stop_request
from saebench.sweep_config import BudgetConfig, FailuresConfig

POLL = 0.25
"""Seconds that one turn of the loop waits for messages."""
LOOK = 0.25
"""Seconds between two checks of what changes slowly: files with requests, time limits of the running trials. They cost
time in proportion to the slots, or a round trip to a file server."""
CHECK = 2.0
"""Seconds between two checks whether MLflow keeps up."""
KILL_AFTER = 1.5
"""A worker that was asked to leave is killed after this many times `run.grace`; by itself it exits after one."""
STARTS = 8
"""Trials started per turn at most: each start takes milliseconds, during which verdicts wait."""


class Scheduler:
    """Run the trials that the search returns, until no trial is left or a `Halt`."""

    def __init__(
        self,
        ledger: Ledger,
        search: Search,
        executor: Executor,
        view: View,
        signals: Signals,
        *,
        failures: FailuresConfig,
        budget: BudgetConfig,
        grace: float = 60.0,
        waiting: Iterable[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.halt: Halt | None = None
        self._ledger = ledger
        self._board = ledger.board
        self._paths: SweepPaths = ledger.paths
        self._search = search
        self._executor = executor
        self._view = view
        self._signals = signals
        self._failures = failures
        self._budget = budget
        self._leave_grace = KILL_AFTER * grace
        self._clock = clock
        self._started = self._checked = clock()
        self._looked = self._started - LOOK
        self._active: dict[int, Active] = {}
        self._answers: list[tuple[int, Verdict]] = []
        """Verdicts of this turn that are not committed yet."""
        self._waiting = Queue(n for n in waiting if not self._overdue(n))
        self._endings = Endings(ledger, executor, view, self._waiting, failures, stop=self._stop, note=self._note)
        self._exhausted = False  # the search had nothing when it was last asked, and nothing has changed since

    def run(self) -> Halt | None:
        """Return why it stopped early; None if every trial has ended. Raises StorageLostError, once the workers have
        left, if the search's records can no longer be stored."""
        try:
            return self._run()
        except StorageLostError as error:
            self._drain(str(error))
            raise

    def _drain(self, why: str) -> None:
        """Let workers write a checkpoint and leave. Nothing is recorded: evaluations that the search has not committed
        are judged again at the next start, from the events that the workers wrote."""
        self._note(f"stopping: {why}")
        self._leave(self._active.values(), why)
        until = self._clock() + self._leave_grace
        while self._active and self._clock() < until and self._signals.level < 2:
            for message in self._executor.poll(POLL):
                if isinstance(message, ExitMessage):
                    self._active.pop(message.number, None)
                elif isinstance(message, EventMessage) and message.event.type == "eval":
                    self._executor.answer(message.number, Verdict.LEAVE)

    def _run(self) -> Halt | None:
        while True:
            look = self._clock() - self._looked >= LOOK
            self._check_signals()
            if look:
                self._looked = self._clock()
                self._check_requests()
            more = self._fill()
            if look or more:
                self._board.slots = [slot.name for slot in self._executor.slots]
            self._ledger.refresh_left()
            if look and self._active:
                self._set_demand()
            self._view.show(self._board)
            stranded = not self._executor.slots and not self._exhausted
            if not self._active and (self.halt or not (self._waiting or stranded)):
                break
            self._handle(self._executor.poll(0.0 if more else POLL))
            if look:
                self._check_time_limits()
        for number in self._waiting.numbers():
            self._ledger.interrupt(number, self._ledger.states[number].reason or self._board.stopping)
        if self.halt is None and (late := self._ledger.numbers("interrupted")):
            self.halt = Halt(
                f"{len(late)} trials reached budget.trial_minutes; to continue them, raise it and use --extend", 75
            )
        return self.halt

    # --- requests to stop --------------------------------------------------------------------------------------------

    def _check_signals(self) -> None:
        if self._signals.level:
            self._stop(Halt(self._signals.why, self._signals.exit_code, now=self._signals.level > 1))
        if self._out_of_samples() and self._something_left():
            self._stop(Halt(f"budget.samples = {self._budget.samples:,} is spent", 75))

    def _check_requests(self) -> None:
        self._ledger.check_place()
        if (halt := stop_request(self._paths)) is not None:
            self._stop(halt)
        self._retry(retry_request(self._paths, self._note))
        hours = (self._clock() - self._started) / 3600
        if self._budget.wall_hours and hours >= self._budget.wall_hours:
            self._stop(Halt(f"budget.wall_hours = {self._budget.wall_hours:g} is spent", 75))

    def _out_of_samples(self) -> bool:
        return self._budget.samples is not None and self._ledger.samples >= self._budget.samples

    def _something_left(self) -> bool:
        """Return whether anything is left to train, as far as is known without asking the search."""
        short = any(self._ledger.states[n].samples < self._total(n) for n in self._active)
        return short or bool(self._waiting) or (not self._active and not self._search.done)

    def _stop(self, halt: Halt) -> None:
        """Stop the sweep. The first reason stays; a later one can only make it faster, and Ctrl-C always sets the exit
        code."""
        if self.halt is None:
            self.halt = replace(halt, now=False)
            self._board.stopping = str(halt)
            self._note(f"stopping: {halt}")
            self._leave(self._active.values(), halt.reason)
        if halt.exit_code == 130:
            self.halt.exit_code = 130
        if halt.now and not self.halt.now:
            self.halt.now = True
            for active in self._active.values():
                self._executor.stop(active.number, "kill")

    def _leave(self, actives: Iterable[Active], why: str) -> None:
        for active in actives:
            if active.leaving is None:
                active.leaving, active.why = self._clock(), why
                self._executor.stop(active.number, "leave")

    def _retry(self, numbers: list[int]) -> None:
        for number in numbers:
            if number in self._ledger.numbers("failed"):
                self._ledger.reopen(number)
                self._waiting.put(Job(number))
                self._note(f"trial {number:04d}: retried on request")

    # --- filling slots -----------------------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Start trials on free slots; True if STARTS of them were started and there may be more."""
        busy = len(self._active) >= len(self._executor.slots)
        if busy or self.halt or self._out_of_samples() or (self._exhausted and not self._waiting):
            return False
        seats = Seats(self._executor.slots, self._active.values(), self._waiting.alone())
        chosen: list[tuple[Job, Slot]] = []
        asked: list[TrialConfig] = []
        for slot in seats.free:
            if len(chosen) == STARTS or (self._exhausted and not self._waiting):
                break
            if not seats.reserved(slot) and (job := self._waiting.take(slot, seats.devices) or self._ask(asked)):
                seats.take(slot, job)
                chosen.append((job, slot))
        if asked:
            self._search.commit()
        for config in asked:
            self._ledger.open(config)
        for job, slot in chosen:
            self._start(job, slot)
        return len(chosen) == STARTS

    def _ask(self, asked: list[TrialConfig]) -> Job | None:
        """Return the next trial of the search, added to `asked`: it may be opened once the search's records are
        committed."""
        config = None if self._exhausted else self._search.ask()
        if config is None:
            self._exhausted = True
            return None
        asked.append(config)
        return Job(config.number)

    def _start(self, job: Job, slot: Slot) -> None:
        number = job.number
        attempt = self._ledger.start(number, slot)
        lease = replace(slot, memory_fraction=None) if job.alone else slot
        config, trial = self._ledger.configs[number], self._paths.trial(number)
        now = self._clock()
        self._active[number] = Active(number, slot, now, now, alone=bool(job.alone))
        self._executor.start(Attempt(number, attempt, config, trial), lease)

    def _set_demand(self) -> None:
        """Let a cluster have back what no trial will use: counted after free slots were filled."""
        ended = self.halt is not None or self._out_of_samples()
        later = 0 if ended else len(self._waiting) + self._board.left
        self._executor.set_demand(len(self._active) + later)

    # --- messages of the workers -------------------------------------------------------------------------------------

    def _handle(self, messages: Iterable[Message]) -> None:
        """Handle messages in order. Evaluations before an attempt's end are committed before that end is written."""
        for message in messages:
            if isinstance(message, EventMessage):
                self._on_event(message.number, message.event)
            elif isinstance(message, NoteMessage):
                self._note(message.text)
            else:
                self._commit()
                self._on_exit(message)
        self._commit()

    def _commit(self) -> None:
        if self._answers:
            self._ledger.commit()
        for number, verdict in self._answers:
            self._executor.answer(number, verdict)
        self._answers.clear()

    def _on_event(self, number: int, event: Event) -> None:
        active = self._active.get(number)
        if active is None:
            return
        active.alive = self._clock()
        self._ledger.see(number, event)
        if event.type == "eval":
            self._answers.append((number, self._judge(active, event)))
        elif event.type in ("done", "left"):
            active.end = event

    def _judge(self, active: Active, event: Event) -> Verdict:
        verdict = self._ledger.judge(active.number, event)
        if verdict == Verdict.PRUNE:
            self._view.note(self._board.verdicts[-1])
        if verdict == Verdict.GO and active.leaving is not None and event.samples < self._total(active.number):
            return Verdict.LEAVE
        return verdict

    def _total(self, number: int) -> int:
        return self._ledger.states[number].total

    def _on_exit(self, message: ExitMessage) -> None:
        active = self._active.pop(message.number, None)
        if active is None:
            return
        self._exhausted = False
        self._endings.record(active, message, halting=self.halt is not None)
        if not self.halt and (why := self._endings.abort_reason()):
            self._stop(Halt(why, 4))

    # --- time limits -------------------------------------------------------------------------------------------------

    def _check_time_limits(self) -> None:
        now = self._clock()
        if now - self._checked >= CHECK:
            self._checked = now
            self._ledger.refresh_board()
        for active in self._active.values():
            if now - active.alive > self._failures.stall_after and not active.stalled:
                active.stalled = True
                self._executor.stop(active.number, "kill")
            elif active.leaving is not None and now - active.leaving > self._leave_grace:
                self._executor.stop(active.number, "kill")
            elif active.leaving is None and self._overdue(active.number, now - active.started):
                self._leave([active], f"budget.trial_minutes = {self._budget.trial_minutes:g} is spent")

    def _overdue(self, number: int, seconds: float = 0.0) -> bool:
        limit = self._budget.trial_minutes
        return limit is not None and self._ledger.states[number].seconds + seconds >= limit * 60

    def _note(self, text: str) -> None:
        self._board.notes.append(text)
        self._view.note(text)
