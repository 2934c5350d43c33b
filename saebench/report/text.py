"""The report in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report.rich_tables import left_out, rich_table
from saebench.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from saebench.report.document import Report

ALL = ("metrics", "strata", "arms", "pareto", "best", "floors", "fidelity", "probing", "stability", "texts", "lost")
"""Tables of `--full`; the others on request."""
FEW = 30
"""Rows up to which a table of trials is shown with `--full`."""
SCREEN = 30
"""Lines of the default report, at 80 columns and more."""


def show(report: Report, console: Console, tables: Sequence[Table] | None = None, *, everything: bool = False) -> None:
    """Print the verdict, the checks and one table; `everything`: all tables; with `tables` only these, complete."""
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), highlight=False)

    if tables is None and not everything:
        from saebench.report.screen import screen

        screen(report, console, SCREEN)
        return
    console.print(Text.assemble((report.name, "bold"), "  ", report.counts), highlight=False)
    if tables is None:
        for text in report.about:
            line(text, "dim")
        line(f"\n{report.verdict}")
        _checks(report, console)
    for table in _chosen(report, tables):
        line("")
        _show_table(table, console)
        if note := " ".join(filter(None, (table.note, left_out(table, console.width)))):
            line(note, "dim")
    for note in report.record.notes:
        line(f"note: {note}", "yellow")


def _checks(report: Report, console: Console) -> None:
    """Print a line per check, failed ones first."""
    from rich.text import Text

    if report.checks:
        console.print(Text("\nBefore you use it", style="bold"), highlight=False)
    for check in report.checks:
        mark, style = MARKS[check.passed]
        _line(console, f"{mark} {check.name}", style, check.text[len(check.name) :])


MARKS = {False: ("x", "red"), None: ("?", "yellow"), True: ("+", "green")}
"""Mark and colour of a check that failed, is undecided, or passed."""


def _line(console: Console, head: str, style: str, rest: str) -> None:
    """Print one line of the box, with wrapped lines indented."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text.assemble((head, style), rest), (0, 0, 0, 2)))


def _chosen(report: Report, tables: Sequence[Table] | None) -> list[Table]:
    if tables is not None:
        return list(tables)
    found = [report.table(name, quick=True) for name in ALL]
    if len(report.frame) <= FEW:
        found.append(report.table("trials"))
    return [table for table in found if len(table.frame) and (table.name != "lost" or len(table.frame) <= FEW)]


def _show_table(table: Table, console: Console) -> None:
    if not len(table.frame):
        console.print(f"{table.title}: none", highlight=False)
        return
    shown = rich_table(table, console.width)
    console.print(shown, highlight=False)
    if not shown.show_edge:  # which is a blank line below
        console.print()
