"""One worker process: its session, environment, log, signals and lifeline."""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths
from saebench.worker import Request, failure, work

FAILED = 1
"""Exit status after a `failed` event."""


class Lifeline:
    """A socket to the executor. A thread listens, so that a request to leave and the scheduler's death are noticed at
    any time; if the scheduler has died and the worker has not exited after `grace` seconds, it is ended."""

    def __init__(self, channel: socket.socket, verdict_wait: float, grace: float) -> None:
        self._channel = channel
        self._verdict_wait = verdict_wait
        self._grace = grace
        self._pending = Verdict.GO
        self._answers: queue.SimpleQueue[tuple[int, Verdict]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    def send(self, event: Event) -> None:
        with contextlib.suppress(OSError):
            self._channel.sendall(event.to_line().encode())

    def pending(self) -> Verdict:
        return self._pending

    def wait(self, samples: int) -> Verdict:
        """Return the verdict; GO if there is no answer. Late answers to earlier marks are ignored."""
        while self._pending is Verdict.GO:
            try:
                mark, verdict = self._answers.get(timeout=self._verdict_wait)
            except queue.Empty:
                print(f"no verdict at {samples} samples after {self._verdict_wait:g} s: training continues", flush=True)
                break
            if mark == samples or verdict is not Verdict.GO:
                return verdict
        return self._pending

    def leave(self) -> None:
        """Request a checkpoint and an exit; wakes a worker that waits for a verdict. Safe in a signal handler."""
        self._pending = Verdict.LEAVE
        self._answers.put((-1, Verdict.LEAVE))

    def _listen(self) -> None:
        with contextlib.suppress(OSError), self._channel.makefile("rb") as lines:
            for line in lines:
                self._take(json.loads(line))
        self.leave()
        print("the connection to the scheduler closed: this worker writes a checkpoint and exits", flush=True)
        threading.Event().wait(self._grace)
        os._exit(FAILED)

    def _take(self, message: dict[str, Any]) -> None:
        verdict = Verdict(message["verdict"])
        if verdict is not Verdict.GO:
            self._pending = verdict
        self._answers.put((message["samples"], verdict))


def run_worker(request: Request, channel: socket.socket) -> NoReturn:
    """Become the worker of one attempt, then exit."""
    status = FAILED
    line = Lifeline(channel, request.verdict_wait, request.grace)
    try:
        become(request)
        for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), lambda *_: line.leave())
        limit(request)
        status = 0 if work(request, line) else FAILED
    except BaseException as error:  # it must never return into the process it was forked from
        traceback.print_exc()
        line.send(replace(failure(error, 0), attempt=request.attempt))
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)  # no teardown: everything worth keeping is on disk, and teardown of CUDA can hang


def become(request: Request) -> None:
    """Set up a session and process group, the environment, and the trial's log as stdout and stderr."""
    if hasattr(os, "setsid") and os.getpid() != os.getsid(0):
        os.setsid()
    os.environ.update(request.environment)
    log = TrialPaths(Path(request.root)).log
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((nothing, 0), (file, 1), (file, 2)):
        os.dup2(ours, theirs)
    os.close(file)
    os.close(nothing)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    faulthandler.enable(sys.stderr)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    print(f"--- trial {request.number:04d} attempt {request.attempt} on {request.device}, pid {os.getpid()}, {now}")


def limit(request: Request) -> None:
    """Limit the share of cores and of the device's memory. If torch is not imported yet, it reads OMP_NUM_THREADS
    later."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(request.threads)
    if request.memory_fraction is not None and request.device.startswith("cuda"):
        import torch

        torch.cuda.set_per_process_memory_fraction(request.memory_fraction, 0)
