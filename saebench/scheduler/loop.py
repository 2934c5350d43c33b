"""The loop: fill the slots, read the workers' events, answer with verdicts, retry, and stop on request.

One thread, no torch. Everything slow or fallible (training, MLflow) happens elsewhere; a turn of the loop costs time in
proportion to the running trials, not to all of them, and starts a few trials at most. The records of a turn are
committed together, and only then are its verdicts sent: no worker acts on a verdict that a crash could take back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from saebench.config import TrialConfig
from saebench.errors import StorageLostError
from saebench.executors import Attempt, EventMessage, Executor, ExitMessage, Message, NoteMessage, Slot
from saebench.runs.events import Event, FailureKind, Verdict
from saebench.runs.paths import SweepPaths
from saebench.scheduler.failures import FAULTLESS, DeviceRecord, abort_reason, may_retry
from saebench.scheduler.ledger import Ledger, reason_of
from saebench.scheduler.placement import Active, Job, Queue, Seats
from saebench.scheduler.protocols import Search, Signals, View
from saebench.scheduler.requests import Halt, retry_request, stop_request
from saebench.sweep_config import BudgetConfig, FailuresConfig

POLL = 0.25
"""Seconds that one turn of the loop waits for messages."""
LOOK = 0.25
"""Seconds between two looks at what changes slowly: files with requests, time limits of the running trials. Both cost
time in proportion to the slots, or a round trip to a file server."""
CHECK = 2.0
"""Seconds between two questions whether MLflow keeps up."""
KILL_AFTER = 1.5
"""A worker that was asked to leave is killed after this many times `run.grace`: it ends itself after one."""
STARTS = 8
"""Trials started per turn at most: each takes milliseconds, in which verdicts wait."""


class Scheduler:
    """Runs the trials that the search hands out, until there are none, or a `Halt`."""

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
        self._devices = DeviceRecord(failures)
        self._active: dict[int, Active] = {}
        self._answers: list[tuple[int, Verdict]] = []
        """Verdicts of this turn that are not committed yet."""
        self._waiting = Queue(n for n in waiting if not self._overdue(n))
        self._exhausted = False  # the search had nothing when it was last asked, and nothing has changed since

    def run(self) -> Halt | None:
        """Return why it stopped early; None when every trial has ended. Raises StorageLostError, once the workers have
        left, if the search's records cannot be kept any more."""
        try:
            return self._run()
        except StorageLostError as error:
            self._drain(str(error))
            raise

    def _drain(self, why: str) -> None:
        """Let workers write a checkpoint and leave. Nothing is recorded of it: what the search has not committed is
        judged again at the next start, from the events that the workers wrote."""
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
            self._view.show(self._board)
            stranded = not self._executor.slots and not self._exhausted
            if not self._active and (self.halt or not (self._waiting or stranded)):
                break
            self._hear(self._executor.poll(0.0 if more else POLL))
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
        """Is anything untrained, as far as can be told without asking for more?"""
        short = any(self._ledger.states[n].samples < self._total(n) for n in self._active)
        return short or bool(self._waiting) or (not self._active and not self._search.done)

    def _stop(self, halt: Halt) -> None:
        """The first reason stays; what comes later can only hurry it, and Ctrl-C is always said in the exit code."""
        if self.halt is None:
            self.halt = replace(halt, now=False)
            self._board.stopping = halt.reason
            self._note(f"stopping: {halt.reason}")
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
        """The next trial of the search, added to `asked`: it may be opened once the search's records are committed."""
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

    # --- hearing the workers -----------------------------------------------------------------------------------------

    def _hear(self, messages: Iterable[Message]) -> None:
        """Handle messages in order. What the search recorded before an attempt's end is committed before that end is
        written."""
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
        kind: FailureKind | None = "stall" if active.stalled else message.kind
        if kind is None and active.end is None:
            kind = "crash"
        asked = bool(active.why or self.halt)
        if kind is None and active.end is not None and active.end.info.get("why") == "leave" and not asked:
            kind, message = "killed", replace(message, detail="it left without being asked to (a signal?)")
        if kind is None or (kind == "killed" and asked):
            self._ended(active)
        else:
            self._failed(active, kind, message.detail or "it ended without a result")
        at_fault = sum(self._ledger.states[n].kind not in FAULTLESS for n in self._ledger.failures)
        if not self.halt and (why := abort_reason(at_fault, self._ledger.ended, self._failures)):
            self._stop(Halt(why, 4))

    def _ended(self, active: Active) -> None:
        """The attempt is over and nothing is wrong with it."""
        number, state = active.number, self._ledger.states[active.number]
        if active.end is not None:
            self._devices.note(active.slot.device, number, None)
        if active.end is not None and active.end.type == "done":
            self._ledger.finish(number, "complete")
        elif state.verdict.get("verdict") == Verdict.PRUNE:
            self._ledger.finish(number, "pruned", f"weak at {state.judged:,} samples")
        else:
            self._ledger.interrupt(number, active.why or "it left")
        self._view.ended(state)

    def _failed(self, active: Active, kind: FailureKind, detail: str) -> None:
        number, state, device = active.number, self._ledger.states[active.number], active.slot.device
        if kind == "no_space":  # the trial did nothing wrong, and the next one would meet the same
            self._stop(Halt(f"{self._paths.root}: no space left for trial {number:04d}: {detail}", 75))
            self._ledger.interrupt(number, reason_of(kind, detail))
            return
        shared = not active.alone and sum(s.device == device for s in self._executor.slots) > 1
        state.close_attempt(kind, detail)
        again = may_retry(kind, state, self._failures.retries, shared=shared)
        then = ("it is retried" if not self.halt else "it is resumed at the next start") if again else "it has failed"
        self._note(f"trial {number:04d}: {reason_of(kind, detail)}; {then}")
        if not again:
            self._ledger.finish(number, "failed", reason_of(kind, detail), kind)
            self._view.ended(state)
        elif self.halt:
            self._ledger.interrupt(number, reason_of(kind, detail))
        else:
            self._ledger.fail_attempt(number, kind, detail)
            alone = device if kind == "cuda_oom" else ""
            self._waiting.put(Job(number, avoid=device if kind in ("crash", "stall") else "", alone=alone), first=True)
        if kind == "user_error" and not self._ledger.numbers("complete", "pruned"):
            self._stop(Halt(f"trial {number:04d}: {detail}", 4, now=True))
        if self._devices.note(device, number, kind):
            self._quarantine(active.slot)

    def _quarantine(self, slot: Slot) -> None:
        """The last device stays: whether the sweep should go on is then for the failure budget to say."""
        if len({s.device for s in self._executor.slots}) > 1:
            self._executor.quarantine(slot)
            self._note(f"{slot.name}: {self._failures.quarantine_after} crashes in a row; taken out of the pool")

    # --- watching the clock ------------------------------------------------------------------------------------------

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
