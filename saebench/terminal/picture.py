"""A sweep drawn for a terminal: the screen of `saebench sweep` and of `saebench status`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Protocol

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from saebench.runs.board import Board, Running
from saebench.runs.state import TrialState

STYLES = {
    "complete": "green",
    "pruned": "yellow",
    "failed": "red",
    "running": "cyan",
    "interrupted": "magenta",
    "planned": "dim",
}


class EncodingProgress(Protocol):
    """The part of the cache's progress that is displayed."""

    @property
    def stage(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def message(self) -> str: ...


def duration(seconds: float) -> str:
    """Return a duration as 1:02:03, or as 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counts_text(board: Board) -> Text:
    """Return the counts of trials, such as "12/24 trials  10 complete  1 pruned  1 failed  2 running"."""
    of = f"/{board.planned or '?'} trials" if board.attended else f" trials of at most {board.planned or '?'}"
    text = Text(f"{board.ended}{of}")
    for state, style in STYLES.items():
        if board.counts[state]:
            text.append(f"  {board.counts[state]} {state}", style)
    return text


def pace_text(board: Board) -> str:
    """Return elapsed time, rate and remaining time, each only if known."""
    rate, eta = board.rate(), board.eta()
    parts = [duration(time.time() - board.started)]
    parts += [f"{rate:.3g} trials/min"] if rate is not None else []
    parts += [f"about {duration(eta)} to go"] if eta is not None and not board.stopping else []
    return ", ".join(parts)


def ended_line(state: TrialState) -> str:
    """Return one line about a trial that has ended."""
    values = ", ".join(
        f"{key.removeprefix('eval/')} {state.values[key]:.4g}" for key in ("eval/fvu", "eval/l0") if key in state.values
    )
    reason = f": {state.reason}" if state.reason else ""
    return f"trial {state.number:04d} {state.stratum} seed {state.seed} {state.state}{reason}" + (
        f" ({values})" if values else ""
    )


def bar_line(done: float, total: float | None, text: str, width: int = 120) -> RenderableType:
    """Return a progress bar and a text on one line; on a narrow screen the bar is shortened, not the text."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row(
        ProgressBar(total or None, done, width=max(10, min(40, width - len(text) - 3))), Text(text, "dim", no_wrap=True)
    )
    return grid


_LEAVES = {"": 110, "slot": 96, "seed": 70, "time": 70}
"""Column -> screen width below which it is left out: a truncated number would be a wrong number."""


def running_table(rows: Iterable[Running], width: int = 120) -> Table:
    """Return a table of the slots and the trials that run on them."""
    table = Table(box=None, padding=(0, 1), header_style="dim")
    lines = [_running_cells(row) for row in rows]
    columns = [name for name in lines[0] if width >= _LEAVES.get(name, 0)] if lines else []
    for name in columns:
        right = name in ("samples", "fvu", "L0", "time")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    for cells in lines:
        table.add_row(*(cells[name] for name in columns))
    return table


def _running_cells(row: Running) -> dict[str, RenderableType]:
    attempt = f" #{row.attempt}" if row.attempt > 1 else ""
    return {
        "slot": row.slot,
        "trial": f"{row.number:04d}{attempt}",
        "stratum": row.stratum,
        "seed": str(row.seed),
        "": ProgressBar(row.total, row.samples, width=16),
        "samples": f"{row.samples:,}",
        "fvu": _number(row.fvu),
        "L0": _number(row.l0),
        "time": duration(time.time() - row.since),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def picture(board: Board, height: int = 40, width: int = 120) -> RenderableType:
    """Return the whole screen, at most about `height` lines."""
    parts: list[RenderableType] = [
        Text.assemble((board.name, "bold"), "  ", counts_text(board)),
        *([bar_line(board.ended, board.planned, pace_text(board), width)] if board.attended else []),
    ]
    if board.stopping:
        parts.append(Text(f"stopping: {board.stopping}; running trials checkpoint and leave", "magenta"))
    if board.tracker:
        parts.append(Text(f"MLflow: {board.tracker}", "red"))
    below: list[RenderableType] = [
        *_section("verdicts", board.verdicts, 4),
        *_section("notes", board.notes, 4),
        *_section("failed", failure_lines(board), 8),
    ]
    rows = sorted(board.running.values(), key=lambda row: row.slot)
    room = max(3, height - len(parts) - len(below) - 5)
    if rows:
        parts.append(running_table(rows[:room], width))
    if len(rows) > room:
        parts.append(Text(f"and {len(rows) - room} more running", "dim"))
    return Group(*parts, *below)


def failure_lines(board: Board) -> list[str]:
    """Return one line per failure reason with the trials that failed for it, so that all reasons fit the screen."""
    by_reason: dict[str, list[int]] = {}
    for number, reason in sorted(board.failures.items()):
        by_reason.setdefault(reason, []).append(number)
    lines = []
    for reason, numbers in by_reason.items():
        shown = ", ".join(f"{n:04d}" for n in numbers[:6]) + (
            f" and {len(numbers) - 6} more" if len(numbers) > 6 else ""
        )
        lines.append(f"{shown}: {reason}")
    return lines


def _section(title: str, lines: Iterable[str], most: int) -> list[RenderableType]:
    shown = list(lines)
    if not shown:
        return []
    more = [Text(f"  {len(shown) - most} more", "dim")] if len(shown) > most else []
    style = "red" if title == "failed" else ""
    return [
        Text(title, "dim"),
        *more,
        *(Text(f"  {line}", style, no_wrap=True, overflow="ellipsis") for line in shown[-most:]),
    ]


def encoding_line(progress: EncodingProgress) -> str:
    if progress.message or progress.stage == "loading":
        return progress.message or "loading the encoder"
    of = f" of {progress.total:,}" if progress.total else ""
    what = {"texts": "reading", "verifying": "verifying"}.get(progress.stage, "encoding")
    return f"{what}: {progress.done:,}{of} {'files' if progress.stage == 'verifying' else 'texts'}"
