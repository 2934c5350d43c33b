"""A sweep drawn for a terminal: the screen of `saebench sweep` and of `saebench status`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from saebench.runs.board import Board
from saebench.runs.clock import time_left
from saebench.runs.state import TrialState
from saebench.terminal.best import best_table
from saebench.terminal.running import BAR_STYLES, clock, running_table

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
    def rate(self) -> float: ...
    @property
    def message(self) -> str: ...


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
    parts = [clock(time.time() - board.started)]
    parts += [f"{rate:.3g} trials/min"] if rate is not None else []
    parts += [time_left(eta)] if eta is not None and not board.stopping else []
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


def bar_line(done: float, total: float | None, text: str, width: int = 120, *, alarm: bool = False) -> RenderableType:
    """Return a progress bar and a text on one line; the bar takes the room that the text leaves. `alarm`: the bar is
    yellow, something has failed."""
    room = width - len(text) - 3
    if room < 10:
        return Text(text, "dim")
    styles = {**BAR_STYLES, "complete_style": "yellow" if alarm else "cyan"}
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total or None, done, width=min(80, room), pulse_style="cyan", **styles)  # type: ignore[arg-type]
    grid.add_row(bar, Text(text, "dim", no_wrap=True))
    return grid


def picture(board: Board, height: int = 40, width: int = 120) -> RenderableType:
    """Return the whole screen, at most about `height` lines."""
    parts: list[RenderableType] = [
        Text.assemble((board.name, "bold"), "  ", counts_text(board)),
        *([_progress(board, width)] if board.attended else []),
    ]
    if board.stopping:
        parts.append(Text(f"stopping: {board.stopping}; running trials checkpoint and exit", "magenta"))
    if board.tracker:
        parts.append(Text(f"MLflow: {board.tracker}", "red"))
    below: list[RenderableType] = [
        *_section("stopped by the pruner", _without_word(board.verdicts), 4),
        *_section("notes", board.notes, 4),
        *_section("failed", failure_lines(board), 8),
    ]
    rows = sorted(board.running.values(), key=lambda row: row.slot)
    room = max(3, height - len(parts) - len(below) - 5)
    if rows:
        parts += [Text(""), running_table(rows[:room], width, board.objective, room)]
    if len(rows) > room:
        parts.append(Text(f"and {len(rows) - room} more running", "dim"))
    best = best_table(board, width, room - (2 if 2 * len(rows) < room else 1) * min(room, len(rows)) - 1)
    if best:
        parts += [Text(""), best]
    return Group(*parts, *below)


def _progress(board: Board, width: int) -> RenderableType:
    """The bar of the sweep; a trial that runs counts by the part that is done. Before the first trial, that of its
    embeddings."""
    if board.preparing is not None:
        return encoding_bar(board.preparing, width)
    done = board.ended + sum(row.fraction for row in board.running.values())
    return bar_line(done, board.planned, pace_text(board), width, alarm=bool(board.failures))


def _without_word(sentences: Iterable[str]) -> Sequence[str]:
    """The sentences without the word that the heading has."""
    return [sentence.removeprefix("stopped ") for sentence in sentences]


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


def encoding_bar(progress: EncodingProgress, width: int) -> RenderableType:
    """Return a progress bar of reading and encoding, and the numbers."""
    return bar_line(progress.done, progress.total, encoding_line(progress), width)


_STAGES = {"texts": "reading", "verifying": "verifying", "comparing": "looking for near duplicates"}


def encoding_line(progress: EncodingProgress) -> str:
    """For example "encoding: 2,400 of 20,000 texts, 210 a second, about 84 s left, done around 14:03"."""
    if progress.message or progress.stage == "loading":
        return progress.message or "loading the encoder"
    of = f" of {progress.total:,}" if progress.total else ""
    unit = "files" if progress.stage == "verifying" else "texts"
    line = f"{_STAGES.get(progress.stage, 'encoding')}: {progress.done:,}{of} {unit}"
    if progress.stage in ("texts", "waiting") or progress.rate <= 0 or not progress.total:
        return line
    left = (progress.total - progress.done) / progress.rate
    return f"{line}, {progress.rate:,.0f} a second{f', {time_left(left)}' * (left >= 1)}"
