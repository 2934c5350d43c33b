"""Trials in the calling process: the same targets and messages as the local executor, for tests and debuggers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saebench.devices import Slot
from saebench.errors import PreflightError
from saebench.executors import TARGET, Attempt, EventMessage, ExitMessage, How, Message, check_free
from saebench.executors.orphans import await_orphans
from saebench.executors.outcome import NO_RESULT, recorded_outcome
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import SweepPaths
from saebench.sweep_config import RunConfig
from saebench.worker import VERDICT_WAIT, Request, work


class _KilledError(BaseException):
    """Raised in a target at its next event to end it; not an Exception, so that the target does not record a
    failure."""


@dataclass
class _Thread:
    """A `Line` over queues."""

    number: int
    slot: Slot
    messages: queue.SimpleQueue[Message | None]
    asked: Verdict = Verdict.GO
    killed: bool = False
    last: Event | None = None
    answers: queue.SimpleQueue[Verdict] = field(default_factory=queue.SimpleQueue)

    def send(self, event: Event) -> None:
        self._obey()
        self.last = event
        self.messages.put(EventMessage(self.number, event))

    def wait(self, samples: int) -> Verdict:
        if self.asked is Verdict.GO:
            try:
                self.answers.get(timeout=VERDICT_WAIT)
            except queue.Empty:
                print(f"no verdict at {samples} samples after {VERDICT_WAIT:g} s: training continues", flush=True)
        self._obey()
        return self.asked

    def pending(self) -> Verdict:
        self._obey()
        return self.asked

    def _obey(self) -> None:
        if self.killed:
            raise _KilledError

    def run(self, request: Request) -> None:
        try:
            work(request, self)
        except _KilledError:
            pass
        except SystemExit as error:
            self.messages.put(ExitMessage(self.number, "crash", f"SystemExit: {error}"))
            return
        self.messages.put(self._exit())

    def _exit(self) -> ExitMessage:
        recorded = recorded_outcome(self.last, killed=self.killed)
        return ExitMessage(self.number, *(recorded or ("crash", NO_RESULT)))


class InProcessExecutor:
    """See `Executor`. A thread per attempt on the CPU; a killed one ends at its next event or step.

    A breakpoint in a trial stops that trial. Environment, output and torch's number of threads are those of the
    calling process.
    """

    def __init__(self, run: RunConfig, cache_dir: Path, target: str = TARGET) -> None:
        if run.devices not in ("auto", "cpu"):
            raise PreflightError(
                f"run.devices: {run.devices}: run.executor: in_process trains on the CPU; use run.executor: local"
            )
        self._slots = tuple(Slot(i, "cpu", f"in process {i}") for i in range(run.per_device or 1))
        self._cache_dir = cache_dir
        self._target = target
        self._running: dict[int, _Thread] = {}
        self._messages: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        """None: `wake`."""

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._slots

    def encoders(self) -> list[str]:
        return ["cpu"]

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:  # noqa: ARG002
        await_orphans(paths.trials(), note)

    def start(self, attempt: Attempt, slot: Slot) -> None:
        check_free(attempt, slot, self._slots, {n: thread.slot for n, thread in self._running.items()})
        thread = _Thread(attempt.number, slot, self._messages)
        self._running[attempt.number] = thread
        name = f"trial {attempt.number:04d}"
        request = attempt.request(
            self._cache_dir,
            self._target,
            device="cpu",
            threads=1,
            memory_fraction=None,
            environment={},
            sys_path=[],
        )
        threading.Thread(target=thread.run, args=(request,), name=name, daemon=True).start()

    def poll(self, timeout: float) -> list[Message]:
        found: list[Message] = []
        end = time.monotonic() + timeout
        while True:
            try:
                wait = 0.0 if found else max(0.0, end - time.monotonic())
                message = self._messages.get(timeout=wait) if wait else self._messages.get_nowait()
            except queue.Empty:
                return found
            if message is None:
                return found
            if isinstance(message, ExitMessage):
                del self._running[message.number]
            found.append(message)

    def wake(self) -> None:
        self._messages.put(None)

    def answer(self, number: int, verdict: Verdict) -> None:
        thread = self._running.get(number)
        if thread is not None:
            if verdict is not Verdict.GO:
                thread.asked = verdict
            thread.answers.put(verdict)

    def stop(self, number: int, how: How) -> None:
        thread = self._running.get(number)
        if thread is None:
            return
        if how == "leave":
            thread.asked = Verdict.LEAVE
        else:
            thread.killed = True
        thread.answers.put(Verdict.LEAVE)

    def set_demand(self, trials: int) -> None:
        """Do nothing: this machine's devices need not be given back."""

    def quarantine(self, slot: Slot) -> None:
        self._slots = tuple(other for other in self._slots if other.device != slot.device)

    def close(self) -> None:
        end = time.monotonic() + VERDICT_WAIT
        for number in list(self._running):
            self.stop(number, "kill")
        while self._running and time.monotonic() < end:
            self.poll(0.1)
