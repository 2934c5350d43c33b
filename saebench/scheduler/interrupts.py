"""Signals: the first one stops a sweep with checkpoints, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class Interrupts:
    """Counts signals while it is entered; outside the main thread (where Python allows no handlers) it counts none.

    Until `patient` is set, the first signal raises KeyboardInterrupt at once, so that encoding or waiting for a server
    ends; a third signal always does. SIGHUP (the terminal was closed) counts unless it was ignored before, as by nohup;
    later output is discarded.

    After a sweep that a signal has ended, further signals of the kinds that end a process end it with the sweep's exit
    code: `kill` twice within a second must not turn 75 (resumable) into 143.
    """

    def __init__(self) -> None:
        self.patient = False
        self._seen: list[str] = []
        self._before: dict[int, Any] = {}
        self._terminals: list[int] = []
        """Handles of stdout and stderr that were terminals at the start; a closed one no longer reports that it is a
        terminal."""

    @property
    def level(self) -> int:
        """0: no signal; 1: stop with checkpoints; 2: stop at once."""
        return min(2, len(self._seen))

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 (stopped, resumable) after another signal."""
        return 130 if "SIGINT" in self._seen else 75

    @property
    def why(self) -> str:
        return "Ctrl-C" if "SIGINT" in self._seen else self._seen[-1] if self._seen else ""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # SIGUSR1 does not exist everywhere
                if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                    continue
                self._before[number] = signal.signal(number, self._note)
        self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            if self._seen and handler == signal.SIG_DFL:
                signal.signal(number, self._end_process)
            else:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's

    def _end_process(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler's signature
        os._exit(self.exit_code)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self._seen.append(signal.Signals(number).name)
        if self._seen[-1] == "SIGHUP":
            self._leave_terminals()
        if len(self._seen) > 2 or (not self.patient and len(self._seen) == 1):
            raise KeyboardInterrupt

    def _leave_terminals(self) -> None:
        """Discard output to a closed terminal: writing to it would crash the sweep instead of stopping it."""
        for handle in self._terminals:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, handle)
            os.close(nowhere)
