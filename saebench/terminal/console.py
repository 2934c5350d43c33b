"""Create the rich console through which all of rich's output goes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import IO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from saebench.escape import escape_controls

PIPED_WIDTH = 140
"""Columns if the output is a file or a pipe."""


class _EscapingConsole(Console):
    """Escapes control characters in all text; rich alone lets most of them through. Rich's own control codes (colours,
    cursor) are not text segments and stay as they are."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(escape_controls(segment.text), segment.style)


def make_console(
    file: IO[str] | None = None, *, width: int | None = None, piped_width: int = PIPED_WIDTH, markup: bool = False
) -> Console:
    """Return a console that prints text as it is: no markup (unless asked for), no emoji codes, no highlighting. Its
    width is `width`, else COLUMNS of the environment, else the terminal's, or `piped_width` if the output is no
    terminal."""
    console = _EscapingConsole(file=file, width=width, markup=markup, emoji=False, highlight=False)
    if width is None and not os.environ.get("COLUMNS", "").isdigit() and not (file or sys.stdout).isatty():
        console.width = piped_width
    return console
