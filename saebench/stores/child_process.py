"""Processes that the cache starts. Requests go in and replies come out as one JSON object per line.

A child exits as soon as its stdin closes, because its parent closed it or died.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, Protocol

from saebench import telemetry
from saebench.errors import DataError

Message = dict[str, Any]
Inbox = queue.SimpleQueue[tuple["Child", Message]]
Serve = Callable[[Iterator[Message], Callable[[Message], None]], None]
"""The work of a child: takes an iterator of requests and a function that sends a reply. `run_child` runs it in a
process, tests run it in a thread."""


class Child(Protocol):
    """A process that takes requests; its replies arrive in an `Inbox`, the last one is {"type": "gone", "why": ...}."""

    name: str

    def send(self, message: Message) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Launch:
    """A place on another machine where a child may run."""

    name: str
    device: str
    """Its name in the child: cpu | cuda:0."""
    environment: Mapping[str, str]
    start: Callable[[str, str, Mapping[str, str], Inbox], Child]
    """See `start` below."""


class ChildProcess:
    """A running `python -m <module>`; its replies arrive in `inbox`, the last one is {"type": "gone", "why": ...}."""

    def __init__(self, module: str, name: str, environment: Mapping[str, str], inbox: Inbox) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "TQDM_DISABLE": "1",
                **environment,
            },  # a progress bar must not be the last line, see _listen
            start_new_session=True,  # Ctrl-C in the terminal is for the parent
        )
        self._thread = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its "gone" is on the way
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Kill the process and close its pipes."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def _listen(self, inbox: Inbox) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            inbox.put((self, json.loads(line)))
        code = self._process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        inbox.put((self, {"type": "gone", "why": f"{how}: {said[-1][:300]}" if said else how}))


def start(module: str, name: str, environment: Mapping[str, str], inbox: Inbox) -> Child:
    """Start a child. A function of its own so that a test can replace it by a thread."""
    return ChildProcess(module, name, environment, inbox)


def run_child(serve: Serve) -> None:
    """Run `serve` on requests from stdin, with replies to stdout, then exit. Other output goes to stderr."""
    telemetry.disable()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(requests,), daemon=True).start()

    turn = threading.Lock()

    def reply(message: Message) -> None:
        with turn:
            replies.write(json.dumps(message) + "\n")
            replies.flush()

    try:
        serve(iter(requests.get, None), reply)
    except DataError as error:
        reply({"type": "error", "message": str(error)})
    except BrokenPipeError:
        pass
    except Exception:  # of any class: the parent shows the last line
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # without the exit handlers of libraries whose threads still hold a stream


def _hear(requests: queue.SimpleQueue[Message]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)
