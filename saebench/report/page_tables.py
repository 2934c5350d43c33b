"""Tables of the page: sortable, filterable, each with its raw values as a CSV download."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from saebench.report import formats
from saebench.report.columns import best_trial
from saebench.report.glossary import HEADS, explained
from saebench.report.markup import text
from saebench.report.table import Column, Row, Table, missing

if TYPE_CHECKING:
    from saebench.report.document import Report

_OPEN = ("strata",)
"""Tables that are initially open."""
_LONG = 60
"""Rows above which a table is always initially closed."""
_FILTER = 15
"""Rows above which a table has a filter."""
_HEAVY = 3_000_000
"""Characters of a CSV above which it is not put into the page."""


def levels(report: Report) -> Table:
    """Strata, Pareto front and best points as one table: every row shows whether it is on the front, and the trial to
    use."""
    strata = report.table("strata")
    front = {_key(row) for row in report.table("pareto").rows()}
    best = {_key(row): row for row in report.table("best").rows()}
    frame = strata.frame.copy()
    rows = strata.rows()
    frame["front"] = [_key(row) in front for row in rows]
    frame["trial"] = [best_trial(best[_key(row)]) if _key(row) in best else None for row in rows]
    columns = [c for c in strata.columns if c.key not in ("chosen_by", "floor")]
    at = next((i for i, c in enumerate(columns) if c.key == "fvu"), len(columns) - 1) + 1
    columns.insert(at, Column("front", "front", lambda r: "●" if r["front"] else ""))
    columns.append(Column("trial", "trial to take", lambda r: "" if missing(r["trial"]) else str(r["trial"])))
    note = (
        "The best setting of every stratum, measured on test texts. ●: on the Pareto front. A trial to take is named "
        "for the best width of each arm and sparsity."
    )
    return replace(strata, title="Every level at a glance", frame=frame, columns=tuple(columns), note=note)


def _key(row: Row) -> tuple[Any, ...]:
    return row["group"], row["arm"], str(row["level"]), str(row["dict_size"])


def table_section(table: Table, seen: set[str]) -> str:
    """Return a folded table."""
    rows = table.rows()
    columns = [(c, [c.text(row) for row in rows]) for c in table.columns]
    numbers = [all(cell[:1].isdigit() or cell[:1] in "+-<" for cell in cells) for _, cells in columns]
    head = "".join(f'<th scope="col"{_right(n)}>{_head(c)}</th>' for (c, _), n in zip(columns, numbers, strict=True))
    body = "".join(f"<tr>{''.join(_cells(row, i, columns, numbers))}</tr>" for i, row in enumerate(rows))
    opened = " open" if table.name in _OPEN and len(rows) <= _LONG else ""
    search = f'<input type="search" placeholder="filter rows" aria-label="Filter {text(table.title)}">'
    note = f'<p class="note">{explained(text(table.note), seen)}</p>' if table.note else ""
    count = f"{len(rows)} row{'s' * (len(rows) != 1)}"
    return (
        f'<section id="{table.name}" class="table"><details{opened}><summary><h3>{text(table.title)}'
        f'</h3> <span class="count">{count}</span></summary>{note}'
        f'<div class="tools">{search if len(rows) > _FILTER else ""}{_csv(table)}</div>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(table.title)}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></details></section>"
    )


def _head(column: Column) -> str:
    meaning = HEADS.get(column.title)
    tip = f' data-tip="{text(meaning)}"' if meaning else ""
    return f'<button type="button"{tip}>{text(column.title)}</button>'


def _csv(table: Table) -> str:
    """Return a link that saves the raw values; none for a very large table."""
    values = formats.csv(table)
    if len(values) > _HEAVY:
        return f'<span class="count">values: saebench report --table {text(table.name)} --format csv</span>'
    return download(f"{table.name}.csv", "text/csv", values, "CSV")


def download(name: str, kind: str, content: str, shown: str) -> str:
    """A link that saves `content` as a file."""
    data = base64.b64encode(content.encode()).decode()
    return f'<a class="take" download="{text(name)}" href="data:{kind};base64,{data}">{text(shown)}</a>'


def _cells(row: Row, i: int, columns: Sequence[tuple[Column, list[str]]], numbers: Sequence[bool]) -> Iterator[str]:
    for (column, cells), number in zip(columns, numbers, strict=True):
        yield f"<td{_right(number)}{_sort_value(row.get(column.key))}>{text(cells[i])}</td>"


def _right(number: bool) -> str:
    return ' class="n"' if number else ""


def _sort_value(value: Any) -> str:
    """Return the raw number, by which intervals and percentages are sorted."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f' data-v="{number:.10g}"' if math.isfinite(number) else ""
