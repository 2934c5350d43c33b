"""The report as one page: no network, no fonts, no libraries; everything is in the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from saebench.report import svg
from saebench.report.chart import Chart
from saebench.report.charts import CHARTS
from saebench.report.table import Column, Row, Table
from saebench.report.verdict import alone

if TYPE_CHECKING:
    from saebench.report.document import Report

ORDER = ("chart:pareto", "arms", "strata", "chart:curves", "pareto", "best", "fidelity", "probing", "stability",
         "verdict", "seeds", "chart:dead", "chart:density", "chart:l0", "chart:parallel", "effects", "importances",
         "lost", "trials")  # fmt: skip
"""Sections of the page, top to bottom."""
_LONG = 60
"""Rows above which a table begins closed."""
_FILTER = 15
"""Rows above which a table has a filter."""


def page(report: Report, *, quick: bool = True) -> str:
    """The whole page as text; `quick`: without what would take long, which becomes a note."""
    sections = list(_sections(report, quick))  # before the notes: a section may add some
    nav = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title, _ in sections)
    here = files("saebench.report")
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(report.name),
        style=here.joinpath("page.css").read_text("utf-8"),
        script=here.joinpath("page.js").read_text("utf-8"),
        counts=escape(report.counts),
        about="".join(f'<p class="about">{escape(line)}</p>' for line in report.about),
        verdicts=_verdicts(report),
        notes=_notes(report.record.notes),
        nav=nav,
        markers=svg.markers(),
        sections="".join(html for *_, html in sections),
    )


def _sections(report: Report, quick: bool) -> Iterator[tuple[str, str, str]]:
    """(anchor, title, html)."""
    for name in ORDER:
        kind, _, chart_name = name.partition(":")
        if chart_name:
            chart = CHARTS[chart_name](report)
            if chart.panels:
                yield f"chart-{chart.name}", chart.title, _figure(chart)
        else:
            table = report.table(kind, quick=quick)
            if len(table.frame):
                yield table.name, table.title, _table(table)


def _verdicts(report: Report) -> str:
    if not report.comparisons:
        return "".join(f'<li class="open">{escape(text)}</li>' for text in report.sentences)
    items = []
    for comparison, text in zip(report.comparisons, report.sentences, strict=True):
        kind = "decided" if comparison.decided and not alone(comparison) else "open"
        word = "this pair alone" if alone(comparison) else "decided" if comparison.decided else "not decided"
        said = escape(text if comparison.decided else text[0].upper() + text[1:])
        items.append(f'<li class="{kind}"><b class="badge">{word}</b> {said}.</li>')
    return "".join(items)


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="notes" aria-label="Notes"><h2>Notes</h2><ul>{items}</ul></section>' if notes else ""


def _figure(chart: Chart) -> str:
    anchor = f"chart-{chart.name}"
    return (
        f'<section id="{anchor}"><h2>{escape(chart.title)}</h2><figure>{svg.chart(chart)}'
        f"<figcaption>{escape(chart.note)}</figcaption></figure></section>"
    )


def _table(table: Table) -> str:
    rows = table.rows()
    columns = [(c, [c.text(row) for row in rows]) for c in table.columns]
    numbers = [all(text[:1].isdigit() or text[:1] in "+-<" for text in texts) for _, texts in columns]
    head = "".join(
        f'<th scope="col"{_right(n)}><button type="button">{escape(c.title)}</button></th>'
        for (c, _), n in zip(columns, numbers, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cells(row, i, columns, numbers))}</tr>" for i, row in enumerate(rows))
    search = f'<input type="search" placeholder="filter rows" aria-label="Filter {escape(table.title)}">'
    return (
        f'<section id="{table.name}"><details{"" if len(rows) > _LONG else " open"}><summary><h2>{escape(table.title)}'
        f'</h2> <span class="count">{len(rows)} rows</span></summary><p class="note">{escape(table.note)}</p>'
        f"{search if len(rows) > _FILTER else ''}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></details></section>"
    )


def _cells(row: Row, i: int, columns: Sequence[tuple[Column, list[str]]], numbers: Sequence[bool]) -> Iterator[str]:
    for (column, texts), number in zip(columns, numbers, strict=True):
        yield f"<td{_right(number)}{_sort_value(row.get(column.key))}>{escape(texts[i])}</td>"


def _right(number: bool) -> str:
    return ' class="n"' if number else ""


def _sort_value(value: Any) -> str:
    """The raw number, so that intervals and percentages sort by what they show."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f' data-v="{number:.10g}"' if math.isfinite(number) else ""
