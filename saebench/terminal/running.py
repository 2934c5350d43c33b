"""The trials that run, a row each: as many columns as the screen has room for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from saebench.runs.board import FVU, Running
from saebench.runs.stopped import metric_label
from saebench.terminal.fit import fitting
from saebench.terminal.spark import sparkline

_BAR, _MOST_BAR, _CURVE = 8, 24, 10
BAR_STYLES = {"style": "bright_black", "complete_style": "cyan", "finished_style": "green"}
"""Colours of every bar; rich's own is red from the start."""


def clock(seconds: float) -> str:
    """Return a duration as 1:02:03, or as 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class _Column:
    name: str
    right: bool = False
    drop: int = 0
    """Columns with the highest number are left out first; 0: never."""


def _columns(objective: str) -> Sequence[_Column]:
    return (
        _Column("slot", drop=7), _Column("trial"), _Column("stratum"), _Column("seed", right=True, drop=5),
        _Column("searched", drop=3), _Column("progress", drop=1), _Column("examples", right=True, drop=6),
        _Column("curve", drop=2), _Column(metric_label(objective), right=True),
        *((_Column("L0", right=True),) if objective != "eval/l0" else ()), _Column("time", right=True, drop=4),
    )  # fmt: skip


def running_table(rows: Iterable[Running], width: int = 120, objective: str = FVU, height: int = 99) -> Table:
    """Return a table of the trials that run. Columns that do not fit are left out, never cut: a cut number would be a
    wrong number. Parameters that do not fit beside a trial are shown below it, if `height` lines allow that. Remaining
    space makes the bars longer."""
    shown = list(rows)
    columns = _fitting(_columns(objective), shown, width, objective)
    below = any(row.parameters for row in shown) and not any(c.name == "searched" for c in columns)
    if below and 2 * len(shown) < height:
        two = [
            _Column("trial "),
            *(c for c in _columns(objective) if c.name not in ("trial", "stratum", "seed", "searched")),
        ]
        columns = _fitting(two, shown, width, objective)
    bar = min(_MOST_BAR, _BAR + max(0, width - _needed(columns, shown, objective)))
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in columns:
        title = "" if column.name == "progress" else column.name
        table.add_column(title.strip(), justify="right" if column.right else "left", no_wrap=True)
    for row in shown:
        table.add_row(*(_shown(column.name, row, objective, bar) for column in columns))
    return table


def _fitting(columns: Sequence[_Column], rows: Sequence[Running], width: int, objective: str) -> Sequence[_Column]:
    """Return the columns that have content and fit."""
    kept = [c for c in columns if not rows or any(_cell(c.name, row, objective) for row in rows)]
    return fitting(kept, lambda c: c.drop, lambda some: _needed(some, rows, objective) <= width)


def _needed(columns: Sequence[_Column], rows: Sequence[Running], objective: str) -> int:
    """Characters that the columns take, each with a space on both sides."""
    return sum(
        2
        + max([len(c.name) if c.name != "progress" else _BAR, *(_width(_cell(c.name, row, objective)) for row in rows)])
        for c in columns
    )


def _width(text: str) -> int:
    return max(map(len, text.split("\n")))


def _shown(name: str, row: Running, objective: str, bar: int) -> RenderableType:
    if name == "progress" and not row.doing:
        return ProgressBar(row.total, row.samples, width=bar, **BAR_STYLES)  # type: ignore[arg-type]
    style = {"searched": "dim", "progress": "magenta", "curve": "cyan"}.get(name, "")
    first, _, second = _cell(name, row, objective).partition("\n")
    return Text.assemble((first, style), (f"\n{second}" * bool(second), "dim"))


def _cell(name: str, row: Running, objective: str) -> str:
    match name:
        case "slot":
            return row.slot
        case "trial":
            return f"{row.number:04d}{f' #{row.attempt}' if row.attempt > 1 else ''}"
        case "trial ":
            return f"{_cell('trial', row, objective)}  {row.stratum}\n      seed {row.seed}, {row.parameters}"
        case "stratum":
            return row.stratum
        case "seed":
            return str(row.seed)
        case "searched":
            return row.parameters
        case "progress":
            return row.doing or " " * _BAR
        case "examples":
            return f"{row.samples:,}"
        case "curve":
            return sparkline(row.curve, _CURVE)
        case "L0":
            return _number(row.l0)
        case "time":
            return clock(time.time() - row.since)
    return _number(row.fvu if objective == FVU else row.curve[-1] if row.curve else None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
