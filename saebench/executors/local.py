"""Trials in worker processes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saebench.devices import Slot, make_slots, uses_gpu
from saebench.executors import TARGET, Attempt, EventMessage, ExitMessage, How, Message, check_free
from saebench.executors.orphans import await_orphans
from saebench.executors.outcome import NO_RESULT, recorded_outcome
from saebench.executors.spawner import (
    Exited,
    Notice,
    Spawner,
    Started,
    end_group,
    group_is_gone,
    make_spawner,
    search_path,
)
from saebench.runs.events import Event, FailureKind, Verdict
from saebench.runs.paths import SweepPaths
from saebench.sweep_config import RunConfig
from saebench.worker import Request

DRAIN = 10.0
"""Seconds after which a slot is free although NVML still reports memory of its dead worker."""
TICK = 0.02
"""Seconds between two checks of conditions that no file descriptor reports."""


@dataclass
class _Worker:
    attempt: Attempt
    slot: Slot
    channel: socket.socket
    ticket: int
    pid: int | None = None
    rest: bytes = b""
    """The received part of an incomplete line."""
    last: Event | None = None
    unanswered: deque[int] = field(default_factory=deque)
    """Marks whose `eval` events wait for a verdict."""
    killed: bool = False
    exited: Exited | None = None
    exited_at: float = 0.0


class LocalExecutor:
    """See `Executor`. One selector, no threads. Raises PreflightError for a device that does not exist."""

    def __init__(
        self,
        run: RunConfig,
        cache_dir: Path,
        target: str = TARGET,
        spawner: Spawner | None = None,
        *,
        fenced: bool = False,
    ) -> None:
        self._slots = make_slots(run)
        self._cache_dir = cache_dir
        self._target = target
        self._workers: dict[int, _Worker] = {}
        self._messages: list[Message] = []
        self._grace, self._fenced = run.grace, fenced
        self._selector = selectors.DefaultSelector()
        self._awake, self._wake = socket.socketpair()
        for end in (self._awake, self._wake):
            end.setblocking(False)
        self._selector.register(self._awake, selectors.EVENT_READ)
        self._woken = False
        self._spawner = spawner or make_spawner(target)
        self._watched: socket.socket | None = None

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._slots

    def encoders(self) -> list[str]:
        return list(dict.fromkeys(slot.device for slot in self._slots))

    def recover(self, paths: SweepPaths, note: Callable[[str], None], cache_keys: Sequence[str] = ()) -> None:  # noqa: ARG002
        await_orphans(paths.trials(), note, self._grace)

    def start(self, attempt: Attempt, slot: Slot) -> None:
        check_free(attempt, slot, self._slots, {n: worker.slot for n, worker in self._workers.items()})
        ours, theirs = socket.socketpair()
        with theirs:
            request = self._request(attempt, slot)
            if self._spawner.channel is None:
                ours.sendall(request.to_json() + b"\n")
            ticket = self._spawner.start(request, theirs)
        ours.setblocking(False)
        self._workers[attempt.number] = worker = _Worker(attempt, slot, ours, ticket)
        self._selector.register(ours, selectors.EVENT_READ, worker)

    def _request(self, attempt: Attempt, slot: Slot) -> Request:
        return attempt.request(
            self._cache_dir,
            self._target,
            device="cuda:0" if slot.device.startswith("cuda") else slot.device,
            threads=slot.threads,
            memory_fraction=slot.memory_fraction,
            environment=environment(slot),
            sys_path=search_path(),
            grace=self._grace,
            fenced=self._fenced,
        )

    def poll(self, timeout: float) -> list[Message]:
        end = time.monotonic() + timeout
        while True:
            self._look(max(0.0, end - time.monotonic()) if not self._messages else 0.0)
            if self._messages or self._woken or time.monotonic() >= end:
                messages, self._messages, self._woken = self._messages, [], False
                return messages

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake already; closed: no poll waits
            self._wake.send(b".")

    def _look(self, wait: float) -> None:
        self._watch()
        if self._spawner.channel is None or any(worker.exited for worker in self._workers.values()):
            wait = min(wait, TICK)
        for key, _ in self._selector.select(wait):
            if isinstance(key.data, _Worker) and key.data.exited is None:
                self._read(key.data)
            elif key.fileobj is self._awake:
                self._woken = True
                with contextlib.suppress(OSError):
                    self._awake.recv(4096)
        for notice in self._spawner.notices():
            self._take(notice)
        self._watch()
        for worker in [worker for worker in self._workers.values() if worker.exited]:
            self._report_exit(worker)

    def _watch(self) -> None:
        """Follow the spawner's channel, which changes when its process is restarted."""
        channel = self._spawner.channel
        if channel is not None and channel.fileno() < 0:
            channel = None
        if channel is self._watched:
            return
        if self._watched is not None:
            self._selector.unregister(self._watched)
        if channel is not None:
            self._selector.register(channel, selectors.EVENT_READ)
        self._watched = channel

    def _read(self, worker: _Worker) -> None:
        """Return everything the worker has sent. End of file does not mean that it has exited, which only its parent
        knows."""
        while True:
            try:
                data = worker.channel.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionError:
                data = b""
            if not data:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(worker.channel)
                return
            *lines, worker.rest = (worker.rest + data).split(b"\n")
            for line in lines:
                self._record(worker, Event.from_line(line.decode()))

    def _record(self, worker: _Worker, event: Event) -> None:
        worker.last = event
        if event.type == "eval":
            worker.unanswered.append(event.samples)
        self._messages.append(EventMessage(worker.attempt.number, event))

    def _take(self, notice: Notice) -> None:
        worker = next((w for w in self._workers.values() if w.ticket == notice.ticket), None)
        if worker is None:
            return
        if isinstance(notice, Started):
            worker.pid = notice.pid
            if worker.killed:
                end_group(notice.pid)
            return
        self._read(worker)
        with contextlib.suppress(KeyError):
            self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.exited, worker.exited_at = notice, time.monotonic()

    def _report_exit(self, worker: _Worker) -> None:
        """Return the exit message once the worker's process group and GPU memory are gone."""
        waited = time.monotonic() - worker.exited_at
        if worker.pid is not None:
            if not group_is_gone(worker.pid, worker.exited_at):
                end_group(worker.pid)
                return
            if uses_gpu(worker.pid, worker.slot.device) and waited < DRAIN:
                return
        del self._workers[worker.attempt.number]
        self._messages.append(ExitMessage(worker.attempt.number, *outcome(worker)))

    def answer(self, number: int, verdict: Verdict) -> None:
        worker = self._workers.get(number)
        if worker is not None and worker.unanswered:
            self._tell(worker, verdict, worker.unanswered.popleft())

    def stop(self, number: int, how: How) -> None:
        worker = self._workers.get(number)
        if worker is None or worker.exited is not None:
            return
        if how == "leave":
            self._tell(worker, Verdict.LEAVE, -1)
            return
        worker.killed = True
        if worker.pid is not None:
            end_group(worker.pid)

    def _tell(self, worker: _Worker, verdict: Verdict, samples: int) -> None:
        line = json.dumps({"verdict": verdict.value, "samples": samples}) + "\n"
        with contextlib.suppress(OSError):  # it is ending: its exit is on the way
            worker.channel.send(line.encode())

    def set_demand(self, trials: int) -> None:
        """Do nothing: this machine's devices need not be given back."""

    def quarantine(self, slot: Slot) -> None:
        self._slots = tuple(other for other in self._slots if other.device != slot.device)

    def close(self) -> None:
        end = time.monotonic() + DRAIN
        for number in list(self._workers):
            self.stop(number, "kill")
        while any(worker.pid for worker in self._workers.values()) and time.monotonic() < end:
            self._look(TICK)
        for worker in self._workers.values():
            worker.channel.close()
        self._workers = {}
        self._spawner.close()
        self._selector.close()
        self._awake.close()
        self._wake.close()


def environment(slot: Slot) -> dict[str, str]:
    """Return the environment variables for a worker's device and its share of the machine."""
    threads = str(slot.threads)
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": slot.device.removeprefix("cuda:") if slot.device.startswith("cuda:") else "",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }


def outcome(worker: _Worker) -> tuple[FailureKind | None, str]:
    """Return (kind, one line of detail) of an attempt whose process has exited."""
    assert worker.exited is not None
    status = worker.exited.status
    if (recorded := recorded_outcome(worker.last, killed=worker.killed)) is not None:
        return recorded
    if status is None:
        return worker.exited.kind, worker.exited.detail
    if sys.platform != "win32" and status == -signal.SIGKILL:
        return "host_oom", "ended by SIGKILL, as the kernel does when memory runs out"
    if status < 0:
        return "crash", f"ended by {signal_name(-status)}"
    if status == 0:
        return "crash", NO_RESULT
    return "crash", f"ended with exit status {status}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
