"""Signals: the first one asks a sweep to leave, the second one to leave now."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")


class Interrupts:
    """Counts signals while it is entered; outside the main thread (where Python allows no handlers) it counts none.

    Until `patient` is set a signal raises KeyboardInterrupt where the program stands, so that encoding or waiting for
    a server ends at once; a third signal always does.
    """

    def __init__(self) -> None:
        self.patient = False
        self._seen: list[str] = []
        self._before: dict[int, Any] = {}

    @property
    def level(self) -> int:
        """0: none; 1: leave; 2: now."""
        return min(2, len(self._seen))

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 75 (stopped, resumable) after SIGTERM or SIGUSR1."""
        return 130 if "SIGINT" in self._seen else 75

    @property
    def why(self) -> str:
        return "Ctrl-C" if "SIGINT" in self._seen else self._seen[-1] if self._seen else ""

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in _SIGNALS:
                number = getattr(signal, name, None)  # SIGUSR1 does not exist everywhere
                if number is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature of a signal handler
        self._seen.append(signal.Signals(number).name)
        if not self.patient or len(self._seen) > 2:
            raise KeyboardInterrupt
