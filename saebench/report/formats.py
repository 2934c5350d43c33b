"""Tables as text and files: csv, json, parquet contain the raw numbers; markdown and latex the formatted ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.escape import escape_controls
from saebench.report.table import Table, missing

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report


def csv(table: Table) -> str:
    """Return raw values, nested ones as JSON; no cell is a formula for a spreadsheet or has a control character."""
    frame = _flat(table.frame)
    for key in frame.columns:
        if frame[key].map(lambda value: isinstance(value, str)).any():
            frame[key] = frame[key].map(lambda value: _cell(value) if isinstance(value, str) else value)
    return str(frame.rename(columns=lambda key: _cell(str(key))).to_csv(index=False))


def _cell(text: str) -> str:
    """Return a cell that a spreadsheet reads as text: an apostrophe precedes what starts like a formula and is not a
    number."""
    text = escape_controls(text).replace("\t", " ")
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") and not _NUMBER.fullmatch(text) else text


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.I)


def _flat(frame: DataFrame) -> DataFrame:
    """Return cells of one type per column: nested values become JSON text."""
    frame = frame.copy()
    for key in frame.columns:
        if any(isinstance(value, dict | list | tuple) for value in frame[key]):
            frame[key] = [json.dumps(value) if value else "" for value in frame[key]]
    return frame


def to_json(table: Table) -> str:
    """A list of objects, one per row; null for missing, NaN or infinite values."""
    rows = [{str(key): _jsonable(value, "/" not in str(key)) for key, value in row.items()} for row in table.rows()]
    return json.dumps(rows, indent=1) + "\n"


def _jsonable(value: Any, whole: bool = False) -> Any:
    """`whole`: a parameter, whose 16.0 is the 16 of the spec (pandas makes floats of integers beside missing ones)."""
    if isinstance(value, dict):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    if missing(value) or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if whole and isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float | bool) else str(value)


def parquet(table: Table, path: Path) -> None:
    """Raw values; columns of mixed types as text."""
    frame = _flat(table.frame)
    for key in frame.columns:
        kinds = {type(value) for value in frame[key].dropna()}
        if frame[key].dtype == object and len(kinds) > 1 and not kinds <= {int, float}:
            frame[key] = frame[key].astype("string")
        elif frame[key].dtype == object and not kinds:
            frame[key] = frame[key].astype("float64")
    frame.to_parquet(path, index=False)


# --- documents -------------------------------------------------------------------------------------------------------


def markdown_table(table: Table) -> str:
    """A pipe table with its title and note."""
    lines = [f"## {table.title}", ""]
    if table.note:
        lines += [table.note, ""]
    if not len(table.frame):
        return "\n".join([*lines, "None.", ""])
    cells = [[_pipe(c.text(row)) for c in table.columns] for row in table.rows()]
    lines.append(_row([_pipe(c.title) for c in table.columns]))
    lines.append(_row(["---"] * len(table.columns)))
    return "\n".join([*lines, *map(_row, cells), ""])


def md(text: str) -> str:
    """Text from outside in Markdown: no HTML, no link or image, no control characters, one line."""
    text = escape_controls(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(\\*)\](?=[(\[:])", lambda end: f"{2 * end[1]}\\]", text)
    return " ".join(text.split())


def _pipe(text: str) -> str:
    return md(text).replace("|", "\\|")


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(report: Report, tables: Sequence[Table]) -> str:
    """The verdicts, notes and tables as one document."""
    about = [f"{md(line)}  " for line in report.about]
    lines = [f"# {md(report.name)}", "", *about, f"{report.counts}.", "", "## Verdict", ""]
    lines += [md(report.verdict), "", *(f"- {md(text)}" for text in report.sentences)]
    if report.checks:
        lines += [
            "",
            "## Before you use it",
            "",
            *(f"- [{'x' if c.passed else ' '}] {md(c.text)}" for c in report.checks),
        ]
    parts = [markdown_table(table) for table in tables]  # before the notes: reading for a table may add some
    if report.record.notes:
        lines += ["", "## Notes", "", *(f"- {md(note)}" for note in report.record.notes)]
    return "\n".join([*lines, "", *parts])
