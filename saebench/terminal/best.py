"""The best trial so far of every arm and sparsity, as a grid."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from saebench.runs.board import Best, Board, Cell
from saebench.runs.stopped import metric_label


def best_table(board: Board, width: int, height: int) -> Table | None:
    """Return a row per arm and a column per sparsity: the best value and its trial, the best of a column in bold. None
    before a trial is complete, or if it does not fit; of too many levels or arms the first are shown."""
    if not board.best or height < 2:
        return None
    arms = list(dict.fromkeys(arm for arm, _ in board.cells.values() or board.best))
    levels = sorted(dict.fromkeys(level for _, level in board.cells.values() or board.best), key=_in_order)
    bests = {level: _best(board, level) for level in levels}
    name = f"best {metric_label(board.objective)}"
    first = max(len(name), *map(len, arms)) + 2
    sizes = {
        level: 2 + max(len(level), *(len(_text(board.best.get((arm, level)))) for arm in arms)) for level in levels
    }
    while len(levels) > 1 and first + sum(sizes[level] for level in levels) > width:
        levels.pop()
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column(name, no_wrap=True)
    for level in levels:
        table.add_column(level, justify="right", no_wrap=True)
    for arm in arms[: height - 1]:
        found = [board.best.get((arm, level)) for level in levels]
        table.add_row(arm, *(_shown(best, bests[level]) for best, level in zip(found, levels, strict=True)))
    return table


def _in_order(level: str) -> tuple[float, str]:
    """By the number in k=16 or target_l0=32."""
    number = re.search(r"=([\d.]+)$", level)
    return (float(number.group(1)) if number else 0.0), level


def _best(board: Board, level: str) -> Best | None:
    found: Sequence[tuple[Cell, Best]] = [(cell, best) for cell, best in board.best.items() if cell[1] == level]
    choose = max if board.maximize else min
    return choose((best for _, best in found), key=lambda best: best.value, default=None)


def _text(best: Best | None) -> str:
    return f"{best.value:.4f} ({best.number:04d})" if best else "-"


def _shown(best: Best | None, leader: Best | None) -> Text:
    if best is None:
        return Text("-", "dim")
    return Text.assemble(
        (f"{best.value:.4f}", "bold green" if best is leader else ""), (f" ({best.number:04d})", "dim")
    )
