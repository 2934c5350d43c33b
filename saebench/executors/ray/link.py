"""The scheduler's end of the bridge: its process, JSON lines, and its last line when it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from saebench.errors import PreflightError
from saebench.executors.ray.wire import Json
from saebench.python_path import python_path

BRIDGE = ("-m", "saebench.executors.ray.bridge")
RAY_PREFIX = re.compile(r"^\[[^]]*\] \S+:\d+: ")
"""Time, thread and source line before a message of Ray's C++."""
CLOSE_WAIT = 20.0
"""Seconds for the bridge to end agents and itself before it is killed."""


class Link:
    """A bridge process. One thread reads and writes; any thread may `wake`."""

    def __init__(self, command: Sequence[str] = BRIDGE) -> None:
        self._channel, theirs = socket.socketpair()
        self._awake, self._wake = socket.socketpair()
        for end in (self._awake, self._wake):
            end.setblocking(False)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the process)
        self._rest = b""
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, *command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,  # Ctrl-C in the terminal is for the scheduler
                env={
                    **os.environ,
                    "PYTHONPATH": python_path(),
                    "RAY_USAGE_STATS_ENABLED": "0",
                },
            )

    def send(self, message: Json) -> None:
        """Send one line; ignored if the bridge has exited, which `receive` reports."""
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    def wake(self) -> None:
        """Make `receive` return now."""
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def receive(self, timeout: float) -> tuple[list[Json], bool]:
        """Return new messages and whether `wake` was called; wait for the first. Raises EOFError, with the bridge's
        last line, if the bridge has ended."""
        ready, _, _ = select.select([self._channel, self._awake], [], [], max(0.0, timeout))
        woken = self._awake in ready
        if woken:
            with contextlib.suppress(OSError):
                self._awake.recv(4096)
        if self._channel not in ready:
            return [], woken
        try:
            data = self._channel.recv(1 << 20)
        except ConnectionError:
            data = b""
        if not data:
            raise EOFError(self._last_line())
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [json.loads(line) for line in lines], woken

    def _last_line(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._output.seek(0)
        lines = self._output.read().decode("utf-8", "replace").strip().splitlines()
        return RAY_PREFIX.sub("", lines[-1].strip())[:300] if lines else f"exit status {self._process.returncode}"

    def close(self) -> None:
        """Wait for the bridge to end, then kill it. Idempotent."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        try:
            self._process.wait(CLOSE_WAIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for end in (self._channel, self._awake, self._wake, self._output):
            end.close()


def require_ray() -> None:
    """Raise PreflightError if Ray is not installed."""
    from importlib.util import find_spec

    if find_spec("ray") is None:
        raise PreflightError('run.executor: ray: Ray is not installed here: pip install "saebench[ray]"')
