"""The warm process that workers are forked from."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from saebench.worker import GRACE, Request
from saebench.worker.process import FAILED, run_worker


class Zygote:
    """Forks a worker per request, reaps it, kills the rest of its process group, and reports how it ended.

    Datagrams in: {"warm": target, "sys_path": [...]}, or a Request with the worker's end of its lifeline.
    Datagrams out: {"ready": true}, {"forked": n, "pid": pid}, {"refused": n, "why": text}, {"ended": n, "status":
    waitpid's}; n counts requests.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, int] = {}
        self._requests, self._grace = 0, GRACE
        self._awake, wake = socket.socketpair()
        self._wake = wake
        for end in (self._awake, wake):
            end.setblocking(False)
        for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"):  # whoever ends a session must let workers checkpoint
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Serve until the executor exits, then wait for the workers to exit."""
        adopt_orphans()
        while True:
            ready, _, _ = select.select([self._channel, self._awake], [], [])
            if self._awake in ready:
                self._reap()
            if self._channel in ready and not self._serve():
                break
        self._await_workers()

    def _serve(self) -> bool:
        data, handles, _, _ = socket.recv_fds(self._channel, 1 << 20, 1)
        if not data:
            return False
        if not handles:
            self._warm(**json.loads(data))
            return True
        self._requests += 1
        with socket.socket(fileno=handles[0]) as lifeline:
            try:
                pid = os.fork()
            except OSError as error:  # no memory or no process left: this worker's misfortune, not everybody's
                self._say(refused=self._requests, why=str(error))
                return True
            if pid == 0:
                self._child(data, lifeline)
        self._children[pid] = self._requests
        self._grace = max(self._grace, json.loads(data)["grace"])
        self._say(forked=self._requests, pid=pid)
        return True

    def _child(self, request: bytes, lifeline: socket.socket) -> NoReturn:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._channel, self._awake, self._wake):
                end.close()
            run_worker(Request.from_json(request), lifeline)
        finally:
            os._exit(FAILED)  # whatever happens, no second zygote

    def _warm(self, warm: str, sys_path: Sequence[str]) -> None:
        """Import what the target needs; an import error is left for the worker to report."""
        sys.path[:] = sys_path
        import torch

        with contextlib.suppress(Exception):
            module = importlib.import_module(warm.partition(":")[0])
            getattr(module, "warm_up", lambda: None)()
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            raise RuntimeError(f"{warm}: importing it started CUDA, and a process that did cannot be forked")
        gc.collect()
        gc.freeze()
        self._say(ready=True)

    def _say(self, **message: Any) -> None:
        with contextlib.suppress(OSError):
            self._channel.send(json.dumps(message).encode())

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._awake.recv(1024):
                pass
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                number = self._children.pop(pid, None)
                if number is not None:  # else: an orphan of a worker
                    kill_group(pid)
                    self._say(ended=number, status=status)

    def _await_workers(self) -> None:
        """Kill workers that have not exited after the grace; they notice by themselves that the executor has exited."""
        end = time.monotonic() + self._grace + 5
        while self._children and time.monotonic() < end:
            select.select([self._awake], [], [], 1)
            self._reap()
        for pid in self._children:
            kill_group(pid)


def kill_group(pgid: int) -> None:
    """Send SIGKILL to every process of a group; does nothing if the group has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the reaper of the grandchildren (Linux), so that none stays a zombie if init does not reap."""
    import ctypes

    set_child_subreaper = 36
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(set_child_subreaper, 1, 0, 0, 0)
