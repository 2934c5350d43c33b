"""Run another program's server in the foreground."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

PATIENCE = 10.0
"""Seconds that a server has to exit after SIGTERM."""


def serve(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    health: str = "",
    ready: Callable[[], None] = lambda: None,
) -> int:
    """Run `command`, with these additions to the environment, until it ends (its exit status), or until Ctrl-C, SIGTERM
    or a closed terminal end this process: then the server and its children are ended, too. Calls `ready` once the
    address `health` answers."""
    windows = sys.platform == "win32"
    if not windows:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
    server = subprocess.Popen(command, start_new_session=not windows, env={**os.environ, **(environment or {})})
    try:
        if health and _answers(health, server):
            ready()
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        _end(server)


def _answers(address: str, server: subprocess.Popen[bytes]) -> bool:
    """Wait until `address` answers; return False if the server exited before."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return True
        except urllib.error.HTTPError:  # an answer
            return True
        except OSError:
            time.sleep(0.1)
    return False


def _leave(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the signature of a signal handler
    sys.exit(128 + number)


def _end(server: subprocess.Popen[bytes]) -> None:
    """Terminate the server, then kill it after PATIENCE, or at once if a second signal comes."""
    try:
        _tell(server, "SIGTERM")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE)
    finally:
        _tell(server, "SIGKILL")
        server.wait()


def _tell(server: subprocess.Popen[bytes], name: str) -> None:
    """Send a signal to the server and its children."""
    if sys.platform == "win32":
        server.terminate()
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, getattr(signal, name))
