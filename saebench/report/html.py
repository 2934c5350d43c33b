"""The report as one page: no network, no fonts, no libraries; everything is in the file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from importlib.metadata import version
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

from saebench.report import advice_text, svg
from saebench.report.advice import FEWEST
from saebench.report.answer import answer
from saebench.report.chart import Chart
from saebench.report.charts import CHARTS
from saebench.report.glossary import explained
from saebench.report.headline import headline
from saebench.report.markup import text
from saebench.report.page_tables import download, levels, table_section
from saebench.runs.secrets import mask

if TYPE_CHECKING:
    from saebench.report.document import Report

GROUPS = (
    ("answer", "Answer", ("metrics", "verdict")),
    ("error", "Sparsity and error", ("chart:pareto", "strata", "arms", "floors", "chart:dead", "advice")),
    ("search", "Search", ("chart:lr", "chart:curves", "chart:importance", "chart:parallel", "effects", "importances",
                          "seeds")),
    ("latents", "Latents", ("fidelity", "probing", "stability", "chart:density", "chart:l0")),
    ("data", "Texts and trials", ("texts", "lost", "trials", "spec")),
)  # fmt: skip
"""Anchor, title and sections of the page's five parts, top to bottom."""


def page(report: Report, *, quick: bool = True, refresh: float | None = None) -> str:
    """Return the whole page as text; `quick`: without slow parts, which a note lists. `refresh`: seconds after which an
    open page reads its file again, while a sweep runs."""
    parts = [(name, title, html) for name, title, html in _parts(report, quick) if html]
    nav = "".join(f'<a href="#{name}">{text(title)}</a>' for name, title, _ in parts)
    sections = "".join(
        f'<section class="part" id="{name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{text(title)}</h2>{html}</section>'
        for name, title, html in parts
    )
    here = files("saebench.report")
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=text(report.name),
        headline=text(headline(report)),
        style=here.joinpath("page.css").read_text("utf-8"),
        script=here.joinpath("page.js").read_text("utf-8"),
        refresh=f' data-refresh="{refresh:g}"' if refresh else "",
        live=f'<p class="live">The sweep runs: this page reads its file again every {refresh:g} s.</p>'
        if refresh
        else "",
        counts=text(report.counts),
        about="".join(f'<p class="about">{text(line)}</p>' for line in report.about),
        nav=nav,
        markers=svg.markers(),
        sections=sections,
        made=text(f"Made {time.strftime('%d %B %Y, %H:%M').lstrip('0')} by saebench {version('saebench')}"),
    )


def _parts(report: Report, quick: bool) -> Iterator[tuple[str, str, str]]:
    """(anchor, title, html); the answer is made last, since a table may add notes to it, and comes first."""
    made = [(name, title, "".join(_sections(report, names, quick, set()))) for name, title, names in GROUPS]
    for name, title, html in made:
        yield name, title, answer(report, set()) + html if name == "answer" else html


def _sections(report: Report, names: tuple[str, ...], quick: bool, seen: set[str]) -> Iterator[str]:
    for name in names:
        kind, _, chart_name = name.partition(":")
        if chart_name:
            chart = CHARTS[chart_name](report)
            if chart.panels:
                yield _figure(chart, seen)
        elif name in ("spec", "advice"):
            yield _spec(report) if name == "spec" else _advice(report, quick, seen)
        else:
            table = levels(report) if kind == "strata" else report.table(kind, quick=quick)
            if len(table.frame):
                yield table_section(table, seen)


def _figure(chart: Chart, seen: set[str]) -> str:
    """Return the figure; a single panel is drawn twice, for a screen and for a phone, so that its text has one size."""
    alone = len(chart.panels) == 1 and not chart.panels[0].axes
    sizes = (("wide", svg.WIDE), ("narrow", svg.NARROW)) if alone else (("", svg.NARROW),)
    drawn = "".join(f'<div class="{kind}">{svg.chart(chart, width)}</div>' for kind, width in sizes)
    kind = ' class="alone"' if alone else ""
    return (
        f'<section id="chart-{chart.name}"><h3>{text(chart.title)}</h3><figure{kind}>'
        f"<figcaption>{explained(text(chart.note), seen)}</figcaption>"
        f'<div class="drawn">{drawn}</div></figure></section>'
    )


def _advice(report: Report, quick: bool, seen: set[str]) -> str:
    """Return the advice on k and width, with the next sweep's spec to copy; "" if no curve has enough levels."""
    said, curves = advice_text.advice(report, quick=quick)
    if not any(len(curve.points) >= FEWEST for curve in curves):
        return ""
    lines = [*said.lines, *([] if said.l0 else ["Which k: the data do not decide it.", *said.silent])]
    html = "".join(f"<li>{explained(text(line), seen)}</li>" for line in lines)
    spec = advice_text.spec_text(report, said)
    taken = download("next.yaml", "text/yaml", spec, "YAML of the next sweep") if spec else ""
    drawn = advice_text.chart(report, quick=quick)
    return (
        f'<section id="advice"><h3>Which k, which width</h3><ul>{html}</ul><div class="tools">{taken}</div></section>'
        f"{_figure(drawn, seen) if drawn.panels else ''}"
    )


def _spec(report: Report) -> str:
    """Return the spec of every sweep, to read and to copy."""
    html = ""
    for source in report.record.sources:
        if source.paths is None or not source.paths.spec.is_file():
            continue
        content = mask(source.paths.spec.read_text("utf-8", "replace"))
        html += (
            f"<details><summary><h3>Spec of {text(source.name)}</h3></summary>"
            f'<div class="tools">{download(f"{source.name}.yaml", "text/yaml", content, "YAML")}</div>'
            f'<pre class="scroll">{text(content)}</pre></details>'
        )
    return f'<section id="spec" class="table">{html}</section>' if html else ""
