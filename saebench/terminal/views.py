"""Show a running sweep: a live screen on a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

from rich.console import Console, RenderableType
from rich.live import Live

from saebench.escape import escape_controls
from saebench.runs.board import Board
from saebench.runs.state import TrialState
from saebench.terminal.console import make_console
from saebench.terminal.encoding import encodable
from saebench.terminal.picture import (
    EncodingProgress,
    counts_text,
    encoding_bar,
    encoding_line,
    ended_line,
    pace_text,
    picture,
)

FRAME = 0.2
"""Seconds between two refreshes of the live screen."""
HEARTBEAT = 60.0
"""Seconds between two plain lines with the counts."""


class View(Protocol):
    """Displays a sweep to the user."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    def say(self, text: str) -> None:
        """Print text that stays on the screen: paths, addresses, the result."""
        ...

    def note(self, text: str) -> None:
        """Report an event, such as a retry."""
        ...

    def encoding(self, progress: EncodingProgress) -> None: ...
    def ended(self, state: TrialState) -> None: ...
    def show(self, board: Board) -> None: ...


class QuietView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        pass

    def say(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def encoding(self, progress: EncodingProgress) -> None:
        pass

    def ended(self, state: TrialState) -> None:
        pass

    def show(self, board: Board) -> None:
        pass


class PlainView(QuietView):
    """Lines with the time in front, for logs, pipes and notebooks."""

    def __init__(self, out: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._last = clock()
        self._tenths: tuple[str, int] = ("", -1)

    def say(self, text: str) -> None:
        out = self._out or sys.stdout
        try:
            for line in escape_controls(text).splitlines():
                _print(f"{time.strftime('%H:%M:%S')} {line}", out)
        except OSError:  # `| head` closed the pipe, or the log's disk is full: the sweep continues
            if out is sys.stdout:
                with contextlib.suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())

    def note(self, text: str) -> None:
        self.say(text)

    def encoding(self, progress: EncodingProgress) -> None:
        """Print a line per stage and per tenth of it."""
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if (progress.stage, tenth) != self._tenths:
            self._tenths = (progress.stage, tenth)
            self.say(encoding_line(progress))

    def ended(self, state: TrialState) -> None:
        self.say(ended_line(state))

    def show(self, board: Board) -> None:
        if self._clock() - self._last >= HEARTBEAT:
            self._last = self._clock()
            self.say(f"{counts_text(board).plain}; {pace_text(board)}")


def _print(line: str, out: IO[str]) -> None:
    try:
        print(line, file=out, flush=True)
    except UnicodeEncodeError as error:
        print(encodable(line, error.encoding), file=out, flush=True)


class LoggedView(QuietView):
    """Wraps a view and writes what `say`, `note` and `ended` print to a log file too."""

    def __init__(self, view: View, log: Path) -> None:
        self._view, self._path = view, log

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._view.__exit__(kind, error, tb)

    def say(self, text: str) -> None:
        self._log(text)
        self._view.say(text)

    def note(self, text: str) -> None:
        self._log(text)
        self._view.note(text)

    def encoding(self, progress: EncodingProgress) -> None:
        self._view.encoding(progress)

    def ended(self, state: TrialState) -> None:
        self._log(ended_line(state))
        self._view.ended(state)

    def show(self, board: Board) -> None:
        self._view.show(board)

    def _log(self, text: str) -> None:
        """Append to the log; ignore a full disk, and a path that this locale cannot encode: the sweep continues."""
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            at = time.strftime("%Y-%m-%d %H:%M:%S")
            file.writelines(f"{at} {line}\n" for line in escape_controls(text).splitlines())


class LiveView(QuietView):
    """Redraws one picture; text printed with `say` stays above it, and stays after the picture is removed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or make_console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._drawn = 0.0
        self._board: Board | None = None

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """Print the event before the first board; later boards display it."""
        if self._board is None:
            self.say(text)

    def say(self, text: str) -> None:
        self._live.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def encoding(self, progress: EncodingProgress) -> None:
        self._draw(lambda: encoding_bar(progress, self._console.width))

    def show(self, board: Board) -> None:
        self._board = board
        self._draw(lambda: self._picture(board))

    def _picture(self, board: Board) -> RenderableType:
        return picture(board, self._console.height, self._console.width)

    def _draw(self, make: Callable[[], RenderableType]) -> None:
        now = time.monotonic()
        if now - self._drawn >= FRAME:
            self._live.update(make(), refresh=True)
            self._drawn = time.monotonic()


def choose_view(*, plain: bool = False, quiet: bool = False) -> View:
    """Return a live view on a terminal, plain lines elsewhere (notebooks too)."""
    if quiet or sys.stdout is None:  # None: it was closed before Python began
        return QuietView()
    if not plain and sys.stdout.isatty():
        console = make_console()
        if console.is_terminal and not console.is_dumb_terminal and console.encoding.startswith("utf"):
            return LiveView(console)
    return PlainView()
