"""The report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report.table import Column, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable

    from saebench.report.document import Report

SHOWN = ("strata", "arms", "pareto", "best", "fidelity", "probing", "stability", "lost")
"""Tables of the terminal report; the others on request."""
FEW = 30
"""Rows up to which a table of trials is shown unasked."""


def show(report: Report, console: Console, tables: Sequence[Table] | None = None) -> None:
    """Verdicts first, then the tables; `tables` given: those alone, whole."""
    from rich.markup import escape

    chosen = list(tables) if tables is not None else _default(report)
    sentences = report.sentences if tables is None else []
    console.print(f"[bold]{escape(report.name)}[/bold]  {report.counts}", highlight=False)
    for sentence in sentences:
        console.print(f"• {sentence}", highlight=False, markup=False)
    for table in chosen:
        console.print()
        console.print(rich_table(table, console.width) if len(table.frame) else f"{table.title}: none", highlight=False)
        if table.note:
            console.print(table.note, style="dim", highlight=False, markup=False)
    if tables is None:
        _hint(report, console)
    for note in report.record.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)


def _default(report: Report) -> list[Table]:
    tables = [report.table(name, quick=True) for name in SHOWN]
    if len(report.frame) <= FEW:
        tables.append(report.table("trials"))
    return [table for table in tables if len(table.frame) and (table.name != "lost" or len(table.frame) <= FEW)]


def _hint(report: Report, console: Console) -> None:
    lost = int((report.frame["state"] != "complete").sum())
    more = ["seeds", "effects", "importances"]
    more += ["lost"] if lost > FEW else []
    more += ["trials"] if len(report.frame) > FEW else []
    console.print(f"\nmore: --table {'|'.join(more)}, --format html --out report.html", style="dim", highlight=False)


def rich_table(table: Table, width: int) -> RichTable:
    """Words left, numbers right; what does not fit into `width` characters is left out by its `spare`."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table as RichTable

    rows = table.rows()
    columns = [(column, [column.text(row) for row in rows]) for column in table.columns]
    while not (fits := sum(_needs(c, cells) for c, cells in columns) <= width) and any(c.spare for c, _ in columns):
        most = max(c.spare for c, _ in columns)
        columns = [(c, cells) for c, cells in columns if c.spare != most]
    shown = RichTable(title=table.title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)
    spare = width - sum(_needs(c, cells) for c, cells in columns)
    for column, cells in columns:
        number = all(cell[:1].isdigit() or cell[:1] in "+-<" for cell in cells)
        extra = max(0, min(spare, max(map(len, [column.title, *cells])) + _GAP - _needs(column, cells)))
        spare -= extra
        size = _needs(column, cells) - _GAP + extra if fits else None  # rich alone would cut numbers
        shown.add_column(escape(column.title), justify="right" if number else "left", width=size, overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        shown.add_row(*map(escape, row))
    return shown


_GAP, _LONG = 3, 24


def _needs(column: Column, cells: Sequence[str]) -> int:
    """Characters without wrapping numbers or short words; titles wrap between words."""
    words = max(len(word) for word in column.title.split() or [""])
    return _GAP + max(words, min(_LONG, max(map(len, cells), default=0)))
