"""report --watch: write the page repeatedly while the sweep runs. An open page reloads itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.cli.browser import open_page
from saebench.cli.output import echo
from saebench.errors import UserError
from saebench.runs.durable import write_text
from saebench.runs.holder import holder

if TYPE_CHECKING:
    from saebench.report import Report

REFRESH = 10.0
"""Least number of seconds between two versions of the page."""
SHARE = 0.1
"""Largest share of the time that making the page may take."""


def watch_page(
    sweeps: tuple[str, ...],
    out: Path | None,
    browse: bool,
    load: Callable[..., Report],
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page until no scheduler holds any of the sweeps, and once more then; Ctrl-C ends it earlier. The file
    is replaced by rename: a browser never reads half of it."""
    file, seconds, opened = out, REFRESH, False
    try:
        while True:
            begun = time.monotonic()
            report = load(*sweeps)
            file = file or _file(report)
            runs = any(source.paths and holder(source.paths) for source in report.record.sources)
            _write(report, file, seconds if runs else None)
            if not opened:
                echo(f"{file}: written every {seconds:.0f} s until the sweep ends; Ctrl-C ends it before")
                if browse and not open_page(file.absolute().as_uri()):
                    echo("no browser was found: open that file yourself", err=True)
                opened = True
            if not runs:
                echo(f"the sweep is not running: {file} is final")
                return
            seconds = max(REFRESH, (time.monotonic() - begun) / SHARE)
            sleep(seconds)
    except KeyboardInterrupt:
        if file is not None and opened:
            _write(load(*sweeps), file, None)
            echo(f"{file}: written a last time")


def _write(report: Report, file: Path, refresh: float | None) -> None:
    from saebench.report.html import page

    try:
        write_text(file, page(report, refresh=refresh))
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error


def _file(report: Report) -> Path:
    paths = report.record.sources[0].paths
    if paths is None:
        raise UserError("--watch needs --out FILE: this sweep has no directory here")
    return paths.report / "report.html"
