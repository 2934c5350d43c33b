"""The report as one page: no network, no fonts, no libraries; everything is in the file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

from saebench.escape import escape_controls
from saebench.report import svg
from saebench.report.chart import Chart
from saebench.report.charts import CHARTS
from saebench.report.checks import Check
from saebench.report.judge import label
from saebench.report.table import Column, Row, Table

if TYPE_CHECKING:
    from saebench.report.document import Report

ORDER = ("chart:pareto", "strata", "metrics", "arms", "chart:curves", "pareto", "best", "floors", "fidelity",
         "probing", "stability", "texts", "verdict", "seeds", "chart:dead", "chart:density", "chart:l0",
         "chart:parallel", "effects", "importances", "lost", "trials")  # fmt: skip
"""Sections of the page, top to bottom."""
_OPEN = ("strata",)
"""Tables that begin open; the page shows the verdict, the front and one table."""
_LONG = 60
"""Rows above which a table begins closed in any case."""
_PAIRS = 6
"""Pairs of arms whose metrics stand under the verdict, all but the first under a fold."""
_FILTER = 15
"""Rows above which a table has a filter."""


def _text(text: str) -> str:
    """Text from outside as HTML: markup and control characters escaped."""
    return escape(escape_controls(text))


def page(report: Report, *, quick: bool = True) -> str:
    """The whole page as text; `quick`: without what would take long, which becomes a note."""
    sections = list(_sections(report, quick))  # before the notes: a section may add some
    nav = "".join(f'<a href="#{name}">{_text(title)}</a>' for name, title, _ in sections)
    here = files("saebench.report")
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=_text(report.name),
        style=here.joinpath("page.css").read_text("utf-8"),
        script=here.joinpath("page.js").read_text("utf-8"),
        counts=_text(report.counts),
        about="".join(f'<p class="about">{_text(line)}</p>' for line in report.about),
        verdicts=_verdicts(report),
        checks=_checks(report),
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
    """The paragraph, a line per metric and pair, and under a fold the sentences with all their numbers."""
    html = f'<p class="verdict">{_text(report.verdict)}</p>'
    rows = report.table("metrics").rows()
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    for i, pair in enumerate(pairs[:_PAIRS]):
        lines = "".join(_metric(row) for row in rows if row["pair"] == pair)
        opened = " open" if i == 0 else ""
        html += f'<details class="metrics"{opened}><summary>{_text(pair)}</summary><dl>{lines}</dl></details>'
    if len(pairs) > _PAIRS:
        html += f'<p class="note">{len(pairs) - _PAIRS} more pairs of arms: see <a href="#metrics">the table</a>.</p>'
    if report.comparisons:
        items = "".join(f"<li>{_text(text)}.</li>" for text in report.sentences)
        html += f"<details><summary>Every pair in full</summary><ul>{items}</ul></details>"
    return html


_GOOD = ("better", "worse", "equal", "small", "same")


def _metric(row: Row) -> str:
    kind = "decided" if row["outcome"] in _GOOD else "open"
    why = f'<span class="why">{_text(row["would_decide"])}</span>' if row["would_decide"] else ""
    return (
        f'<div class="{kind}"><dt>{_text(label(row["metric"]))}</dt><dd><b class="badge">{_text(row["said"])}</b> '
        f"{_text(row['difference_text'])} {why}</dd></div>"
    )


def _checks(report: Report) -> str:
    """The box: failed checks first, those that passed under a fold."""
    left, passed = [c for c in report.checks if not c.passed], [c for c in report.checks if c.passed]
    items = "".join(_check(check) for check in left)
    fold = f"<details><summary>{len(passed)} passed</summary><ul>{''.join(map(_check, passed))}</ul></details>"
    return f"<ul>{items}</ul>{fold if passed else ''}" if report.checks else ""


def _check(check: Check) -> str:
    kind = {False: "failed", None: "unknown", True: "passed"}[check.passed]
    advice = f' <span class="why">{_text(check.advice)}.</span>' if check.passed is False and check.advice else ""
    return f'<li class="{kind}"><b>{_text(check.name)}</b> {_text(check.found)}.{advice}</li>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{_text(note)}</li>" for note in notes)
    return f'<section class="notes" aria-label="Notes"><h2>Notes</h2><ul>{items}</ul></section>' if notes else ""


def _figure(chart: Chart) -> str:
    anchor = f"chart-{chart.name}"
    return (
        f'<section id="{anchor}"><h2>{_text(chart.title)}</h2><figure>{svg.chart(chart)}'
        f"<figcaption>{_text(chart.note)}</figcaption></figure></section>"
    )


def _table(table: Table) -> str:
    rows = table.rows()
    columns = [(c, [c.text(row) for row in rows]) for c in table.columns]
    numbers = [all(text[:1].isdigit() or text[:1] in "+-<" for text in texts) for _, texts in columns]
    head = "".join(
        f'<th scope="col"{_right(n)}><button type="button">{_text(c.title)}</button></th>'
        for (c, _), n in zip(columns, numbers, strict=True)
    )
    body = "".join(f"<tr>{''.join(_cells(row, i, columns, numbers))}</tr>" for i, row in enumerate(rows))
    opened = " open" if table.name in _OPEN and len(rows) <= _LONG else ""
    search = f'<input type="search" placeholder="filter rows" aria-label="Filter {_text(table.title)}">'
    return (
        f'<section id="{table.name}"><details{opened}><summary><h2>{_text(table.title)}'
        f'</h2> <span class="count">{len(rows)} rows</span></summary><p class="note">{_text(table.note)}</p>'
        f"{search if len(rows) > _FILTER else ''}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(table.title)}"><table><thead><tr>{head}'
        f"</tr></thead><tbody>{body}</tbody></table></div></details></section>"
    )


def _cells(row: Row, i: int, columns: Sequence[tuple[Column, list[str]]], numbers: Sequence[bool]) -> Iterator[str]:
    for (column, texts), number in zip(columns, numbers, strict=True):
        yield f"<td{_right(number)}{_sort_value(row.get(column.key))}>{_text(texts[i])}</td>"


def _right(number: bool) -> str:
    return ' class="n"' if number else ""


def _sort_value(value: Any) -> str:
    """The raw number, so that intervals and percentages sort by what they show."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f' data-v="{number:.10g}"' if math.isfinite(number) else ""
