"""The report that fits a screen: the whole verdict, then as much as fits of metrics, checks and one table."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from saebench.report.controls import is_of_interest
from saebench.report.headline import headline
from saebench.report.judge import label
from saebench.report.table import Row, Table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    from saebench.report.checks import Check
    from saebench.report.document import Report

LEAST = (2, 2, 3)
"""Least numbers of metrics, checks and table rows that are shown."""
_GOOD, _BAD, _OPEN = "green", "red", "yellow"
_STYLE = {"better": _GOOD, "worse": _GOOD, "equal": _GOOD, "small": _GOOD, "same": _GOOD}


def screen(report: Report, console: Console, lines: int) -> None:
    """Print the report in at most so many lines, unless the verdict alone is longer."""
    from rich.text import Text

    head = [
        Text.assemble((report.name, "bold"), "  ", report.counts),
        *(Text(line, "dim") for line in report.about[:2]),
    ]
    said = [Text(f"{headline(report)}.", "bold"), Text(report.verdict)]
    notes = report.record.notes
    rows, failed = _metric_rows(report), [check for check in report.checks if not check.passed]
    table = report.table("strata") if len(report.frame) else None
    taken = len(head) + sum(len(text.wrap(console, console.width)) for text in said) + 1 + bool(notes) + 6
    needed = sum(len(_check_lines(check, console)) for check in failed)
    wanted = (len(rows), needed, len(table.frame) if table is not None else 0)
    if table is not None:  # its head, which may wrap
        taken += len(console.render_lines(_shown(table, 1, console.width), pad=False)) - 1
    metrics, checks, strata = _shares(wanted, lines - taken)
    for text in head:
        _print_line(console, text)
    console.print()
    for text in said:
        console.print(text, highlight=False)
    _metrics(console, rows, metrics)
    _checks(report, console, checks)
    if table is not None:
        console.print()
        console.print(_shown(table, strata, console.width), highlight=False)
    console.print()
    _print_line(console, Text(_last(report, wanted[2] - strata), "dim"))
    if notes:
        _print_line(console, Text(f"note: {notes[0]}", _OPEN))


def _print_line(console: Console, text: Text) -> None:
    """Print one line, cut between words if it does not fit."""
    if text.cell_len > console.width:
        kept = text.plain[: console.width - 2].rfind(" ")
        text.truncate(kept if kept > 0 else console.width - 2)
        text.append(" …")
    console.print(text, overflow="ellipsis", no_wrap=True, highlight=False)


def _shares(wanted: tuple[int, int, int], room: int) -> tuple[int, int, int]:
    """Distribute `room` lines: first each part's least number, then in turn, the table first."""
    given = [min(want, least) for want, least in zip(wanted, LEAST, strict=True)]
    while sum(given) < room and any(has < want for has, want in zip(given, wanted, strict=True)):
        for part in (2, 1, 0):
            if given[part] < wanted[part] and sum(given) < room:
                given[part] += 1
    return given[0], given[1], given[2]


def _metric_rows(report: Report) -> list[tuple[str, Row]]:
    """(name, row) per metric; the primary metric of every pair of interest if there are several pairs."""
    rows = report.table("metrics").rows()
    if len({row["pair"] for row in rows}) <= 1:
        return [(label(row["metric"]), row) for row in rows] if len(rows) > 1 else []
    first = report.primary[0]
    return [(row["pair"], row) for row in rows if row["metric"] == first and is_of_interest(row["a"], row["b"])]


def _metrics(console: Console, rows: list[tuple[str, Row]], most: int) -> None:
    from rich.text import Text

    shown = rows if len(rows) <= most else rows[: max(most - 1, 1)]
    if not shown:
        return
    console.print()
    width = min(max(len(name) for name, _ in shown), console.width // 2)
    said = max(len(row["said"]) for _, row in shown)
    for name, row in shown:
        outcome = (row["said"].ljust(said), _STYLE.get(row["outcome"], _OPEN))
        text = Text.assemble("  ", name[:width].ljust(width), "  ", outcome, "  ", row["difference_text"])
        _print_line(console, text)
    if len(rows) > len(shown):
        console.print(Text(f"  and {len(rows) - len(shown)} more: --table metrics", "dim"), highlight=False)


def _checks(report: Report, console: Console, most: int) -> None:
    """Print the checks: how many passed, and a line for each that did not; complete if `most` lines suffice."""
    from rich.text import Text

    found = report.checks
    if not found:
        return
    failed, passed = [c for c in found if not c.passed], sum(bool(c.passed) for c in found)
    shown = failed if len(failed) <= most else failed[: max(most - 1, 1)]
    more = f"; {len(failed) - len(shown)} more did not: --full" if len(failed) > len(shown) else ""
    head = Text.assemble(("Before you use it", "bold"), f"  {passed} of {len(found)} checks passed{more}")
    console.print()
    _print_line(console, head)
    lines_left = most - len(shown) - bool(more)
    for check in shown:
        lines = _check_lines(check, console)
        if len(lines) - 1 <= lines_left:
            lines_left -= len(lines) - 1
            for line in lines:
                console.print(line, highlight=False)
        else:
            _print_line(console, _shorter(check, console.width))


def _check_text(check: Check, whole: str = "") -> Text:
    """The check with its mark; `whole` instead of its own text."""
    from rich.text import Text

    mark, style = ("x", _BAD) if check.passed is False else ("?", _OPEN)
    return Text.assemble("  ", (f"{mark} {check.name}", style), (whole or check.text)[len(check.name) :])


def _check_lines(check: Check, console: Console) -> list[Text]:
    """The whole check, wrapped, later lines indented."""
    lines = list(_check_text(check).wrap(console, console.width - 4))
    for line in lines[1:]:
        line.pad_left(4)
    return lines


def _shorter(check: Check, width: int) -> Text:
    """Return the check on one line: without advice, cut after the last clause that fits."""
    said = f"{check.name}: {check.found}"
    ends = [len(said), *(found.start() for found in reversed(list(re.finditer(r"[:;,.] ", check.found))))]
    ends = [ends[0], *(len(check.name) + 2 + end for end in ends[1:])]
    fits = (text for end in ends if (text := _check_text(check, f"{said[:end]} (--full)")).cell_len <= width)
    return next(fits, _check_text(check))


def _shown(table: Table, rows: int, width: int) -> RichTable:
    """The first rows, without title and edge."""
    from saebench.report.rich_tables import rich_table

    columns = tuple(column for column in table.columns if column.key != "chosen_by")
    shown = rich_table(replace(table, frame=table.frame.head(rows), columns=columns), width)
    shown.title, shown.show_edge = None, False
    return shown


def _last(report: Report, hidden: int) -> str:
    """Return where the rest is; `hidden`: rows of the table that there was no room for."""
    if not len(report.frame):
        return "no trials yet"
    notes = len(report.record.notes)
    rows = f"{hidden} more row{'s' * (hidden > 1)}: --table strata; " if hidden else ""
    more = f"; {notes - 1} more note{'s' * (notes > 2)}" if notes > 1 else ""
    return f"{rows}more: --full, --table NAME, --out report.html{more}"
