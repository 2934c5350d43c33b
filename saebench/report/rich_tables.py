"""A table laid out for a terminal: which columns fit, and how wide each is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report.table import Column, Table
from saebench.terminal.fit import fitting

if TYPE_CHECKING:
    from rich.table import Table as RichTable

_GAP = 3
_PADDING = {3: (0, 1, 0, 1), 2: (0, 1, 0, 0), 1: (0, 0, 0, 0)}
"""Characters between columns, one of which is the table's own -> above, right, below, left of a cell."""
_Columns = Sequence[tuple[Column, Sequence[str]]]


def rich_table(table: Table, width: int) -> RichTable:
    """Align words left, numbers right. Columns that do not fit into `width` characters are left out by their `drop`;
    then gaps shrink and cells wrap between words. Words are cut only if not even one fits per column."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    columns = _fitting(table, width)
    gap, sizes = _layout(columns, width)
    shown = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False,
                      padding=_PADDING[gap], show_edge=gap == _GAP)  # fmt: skip
    for (column, cells), size in zip(columns, sizes, strict=True):
        number = all(cell[:1].isdigit() or cell[:1] in "+-<" for cell in cells)
        shown.add_column(escape(column.title), justify="right" if number else "left", width=size, overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        shown.add_row(*map(escape, row))
    return shown


def _fitting(table: Table, width: int) -> _Columns:
    """Return the columns that fit, with their cells."""
    rows = table.rows()
    columns = [(column, [column.text(row) for row in rows]) for column in table.columns]
    return fitting(columns, lambda c: c[0].drop, lambda some: _room(some, width, _GAP) >= 0)


def left_out(table: Table, width: int) -> str:
    """Return a sentence that names the columns that did not fit."""
    shown = {column.key for column, _ in _fitting(table, width)}
    missing = [column.title for column in table.columns if column.key not in shown]
    return f"No room here for: {', '.join(missing)}." if missing and len(table.frame) else ""


def _layout(columns: _Columns, width: int) -> tuple[int, list[int | None]]:
    """The gap between columns, and their widths; None leaves them to rich, which cuts words."""
    wanted = [_needs(column, cells) for column, cells in columns]
    least = [_word(column, cells) for column, cells in columns]
    for gap, floor in ((_GAP, wanted), (2, wanted), (2, least), (1, least)):
        room = width - gap * len(columns)
        if sum(floor) <= room:
            return gap, [*_given(floor, wanted, columns, room)]
    return 1, [None] * len(columns)


def _given(floor: Sequence[int], wanted: Sequence[int], columns: _Columns, room: int) -> list[int]:
    """Distribute `room`: least widths first, then preferred widths, then the width of one line per cell."""
    sizes, left = list(floor), room - sum(floor)
    longest = [max(map(len, [column.title, *cells])) for column, cells in columns]
    for wish in (wanted, longest):
        for i in sorted(range(len(sizes)), key=lambda i: wish[i] - sizes[i]):  # the nearer to one line, the sooner
            more = max(0, min(left, wish[i] - sizes[i]))
            sizes[i], left = sizes[i] + more, left - more
    return sizes


def _room(columns: _Columns, width: int, gap: int) -> int:
    return width - sum(_needs(column, cells) + gap for column, cells in columns)


def _needs(column: Column, cells: Sequence[str]) -> int:
    """Characters without wrapping numbers or short words; titles wrap between words."""
    return max(_longest_word(column.title), min(column.long, max(map(len, cells), default=0)))


def _word(column: Column, cells: Sequence[str]) -> int:
    """Characters that cut no word but a very long one."""
    return max(_longest_word(column.title), min(column.long, max(map(_longest_word, cells), default=0)))


def _longest_word(text: str) -> int:
    return max(map(len, text.split()), default=0)
