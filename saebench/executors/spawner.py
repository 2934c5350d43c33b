"""Start worker processes and notice their end: forked from a warm process, or started one by one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import psutil

from saebench.python_path import python_path
from saebench.runs.events import FailureKind
from saebench.runs.paths import TrialPaths
from saebench.worker import Request
from saebench.worker.zygote import kill_group

CLOSE_WAIT = 5.0
"""Seconds that a process has to exit before it is killed."""


@dataclass(frozen=True)
class Started:
    """Worker `ticket` runs as process `pid`, the leader of its group."""

    ticket: int
    pid: int


@dataclass(frozen=True)
class Exited:
    """Worker `ticket` has ended and is reaped. status: exit status, or minus the signal; None if it is unknown."""

    ticket: int
    status: int | None
    kind: FailureKind = "crash"
    """The reason, if `status` is None."""
    detail: str = ""


Notice = Started | Exited


class Spawner(Protocol):
    """Starts workers. A ticket numbers a start."""

    def start(self, request: Request, lifeline: socket.socket) -> int:
        """Start a worker that holds the other end of `lifeline`'s pair; return its ticket at once."""
        ...

    @property
    def channel(self) -> socket.socket | None:
        """A file descriptor that is readable if `notices` has something; None if it must be polled."""
        ...

    def notices(self) -> list[Notice]:
        """Return what happened since the last call, without waiting."""
        ...

    def close(self) -> None:
        """End the processes that the spawner itself started."""
        ...


def make_spawner(target: str) -> Spawner:
    """Return the spawner for this platform: forked workers if that is safe. macOS has fork, but its frameworks do not
    survive it."""
    return ForkingSpawner(target) if sys.platform == "linux" else FreshSpawner()


def search_path() -> list[str]:
    """Return this process's sys.path, so that a worker finds the same modules."""
    return [entry or os.getcwd() for entry in sys.path]


def _environment() -> dict[str, str]:
    """Return the environment of a new interpreter. It finds this saebench; thread pools stay small until a worker has
    its share, and their threads sleep while they wait: busy waiting costs a factor of five if trials share cores. A
    query for CUDA while the warm process imports must not start the driver in it."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    asleep = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY") or "PASSIVE"}
    return {
        **os.environ,
        **one_thread,
        **asleep,
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
        "PYTHONPATH": python_path(),
    }


class ForkingSpawner:
    """Workers forked from a warm process in its own session, which is restarted when it dies."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._tickets = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._warm()

    def _warm(self) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._ready = False
        self._first = self._tickets
        """First ticket of this warm process."""
        self._pids: dict[int, int | None] = {}
        command = [sys.executable, "-m", "saebench.worker", "zygote", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            env=_environment(),
        )
        theirs.close()
        with contextlib.suppress(OSError):  # it has just exited: `notices` says so
            self._channel.send(json.dumps({"warm": self._target, "sys_path": search_path()}).encode())

    @property
    def channel(self) -> socket.socket:
        return self._channel

    def start(self, request: Request, lifeline: socket.socket) -> int:
        if self._process is None:
            self._warm()
        self._tickets += 1
        self._pids[self._tickets] = None
        with contextlib.suppress(OSError):  # it has just exited: `notices` says so
            socket.send_fds(self._channel, [request.to_json()], [lifeline.fileno()])
        return self._tickets

    def notices(self) -> list[Notice]:
        found: list[Notice] = []
        while self._process is not None:
            try:
                data = self._channel.recv(1 << 16, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                return found + self._report_exit()
            notice = self._understand(json.loads(data))
            if notice is not None:
                found.append(notice)
        return found

    def _understand(self, message: dict[str, Any]) -> Notice | None:
        if "forked" in message:
            ticket = self._first + message["forked"]
            self._pids[ticket] = message["pid"]
            return Started(ticket, message["pid"])
        if "ended" in message:
            ticket = self._first + message["ended"]
            self._pids.pop(ticket, None)
            return Exited(ticket, os.waitstatus_to_exitcode(message["status"]))
        if "refused" in message:
            ticket = self._first + message["refused"]
            self._pids.pop(ticket, None)
            return Exited(ticket, None, "host_oom", f"no process could be started: {message['why']}")
        self._ready = True
        return None

    def _report_exit(self) -> list[Notice]:
        """Handle the end of the warm process: its workers can no longer be watched, so they are killed."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_WAIT)
        status = self._process.returncode
        kind, detail = self._why(status)
        for pid in self._pids.values():
            if pid is not None:
                kill_group(pid)
        notices: list[Notice] = [Exited(ticket, None, kind, detail) for ticket in self._pids]
        self._end()
        return notices

    def _why(self, status: int | None) -> tuple[FailureKind, str]:
        self._output.seek(0)
        words = self._output.read().decode("utf-8", "replace").strip().splitlines()
        last = words[-1].strip() if words else f"exit status {status}"
        if not self._ready:
            return "user_error", f"the process that workers are forked from did not start: {last}"
        if status == -signal.SIGKILL:
            return "host_oom", "the process that workers are forked from was ended by SIGKILL"
        return "crash", f"the process that workers are forked from ended: {last}"

    def _end(self) -> None:
        self._channel.close()
        self._output.close()
        self._process = None
        self._pids = {}

    def close(self) -> None:
        """End the warm process at once, even while it imports; a worker that it could not report ends with it."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            while data := self._channel.recv(1 << 16, socket.MSG_DONTWAIT):
                notice = self._understand(json.loads(data))
                if isinstance(notice, Started):
                    end_group(notice.pid)
        self._end()


class FreshSpawner:
    """A new interpreter per worker: slower by the imports; the only way on Windows and macOS."""

    channel = None

    def __init__(self) -> None:
        self._tickets = 0
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._started: list[Notice] = []

    def start(self, request: Request, lifeline: socket.socket) -> int:
        self._tickets += 1
        windows = sys.platform == "win32"
        log = TrialPaths(Path(request.root)).log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "saebench.worker", "once", "-" if windows else str(lifeline.fileno())],
                pass_fds=[] if windows else [lifeline.fileno()],
                stdin=subprocess.PIPE if windows else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=not windows,
                env=_environment() | request.environment | {"PYTHONPATH": _environment()["PYTHONPATH"]},
            )
        if process.stdin is not None:
            process.stdin.write(lifeline.share(process.pid))  # type: ignore[attr-defined]
            process.stdin.close()
        self._processes[self._tickets] = process
        self._started.append(Started(self._tickets, process.pid))
        return self._tickets

    def notices(self) -> list[Notice]:
        found, self._started = self._started, []
        for ticket, process in list(self._processes.items()):
            status = process.poll()
            if status is not None:
                del self._processes[ticket]
                end_group(process.pid)
                found.append(Exited(ticket, status))
        return found

    def close(self) -> None:
        for process in self._processes.values():
            end_group(process.pid)
            process.wait()
        self._processes = {}


def end_group(pid: int) -> None:
    """Send SIGKILL to the process group of worker `pid`, and to `pid` itself, which may not lead a group yet."""
    if sys.platform == "win32":
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]:
                process.kill()
        return
    kill_group(pid)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def group_is_gone(pgid: int, since: float) -> bool:
    """Return whether no process of the group is alive. since: time.monotonic() of the leader's end; zombies are
    searched only if the group still exists a while later, because that reads the whole process table."""
    if sys.platform == "win32":
        return True
    try:
        os.killpg(pgid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    if time.monotonic() - since < 0.5:
        return False
    return not any(_lives_in(process, pgid) for process in psutil.process_iter())


def _lives_in(process: psutil.Process, pgid: int) -> bool:
    try:
        return os.getpgid(process.pid) == pgid and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.Error):
        return False
