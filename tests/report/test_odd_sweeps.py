"""Whatever a sweep lacks, every table, every format and every chart still comes."""

from __future__ import annotations

import io
import math
import xml.etree.ElementTree as ElementTree
from functools import partial

import pytest
from rich.console import Console
from sweep_data import frame_of, simulate, with_state

from saebench.report import TABLES, formats, latex, svg
from saebench.report.charts import CHARTS
from saebench.report.document import Report
from saebench.report.html import page
from saebench.report.plots import figure
from saebench.report.record import Record
from saebench.report.text import show

few = partial(simulate, levels=(16, 32), widths=(1536,))
"""A small sweep of two arms."""


def without(trials, *keys):
    for trial in trials:
        for key in keys:
            trial["metrics"].pop(key, None)
            trial["params"].pop(key, None)
    return trials


def nan(trials):
    for trial in trials[::2]:
        trial["metrics"]["eval/fvu"] = math.nan
    return trials


def penalties():
    """Arms searched by l1_coeff: no level that is an L0."""
    trials = few(arms={"vanilla": 1.0, "gated": 1.1})
    for trial in trials:
        level = trial["params"].pop("target_l0")
        trial["params"]["l1_coeff"] = 1 / level
        trial["stratum"] = f"{trial['type']}-l1_coeff_{1 / level}"
    return trials


ODD = {
    "no trials": [],
    "all failed": [with_state(t, "failed", "crash") for t in few()],
    "all running": [with_state(t, "running") for t in few()],
    "one arm": few(arms={"topk": 1.0}),
    "one trial": simulate(arms={"topk": 1.0}, levels=(16,), widths=(1536,), points=1, seeds=(0,)),
    "no metrics": without(few(), *few()[0]["metrics"]),
    "no fvu": without(few(), "eval/fvu"),
    "no l0": without(few(), "eval/l0"),
    "no dead": without(few(), "eval/dead_fraction", "eval/dead_features"),
    "no lr, no width": without(few(), "lr", "dict_size"),
    "no sparsity": without(few(), "k"),
    "nan": nan(few()),
    "fvu of zero": [{**t, "metrics": {**t["metrics"], "eval/fvu": 0.0}} for t in few()],
    "penalties": penalties(),
    "no seed": [{**t, "seed": ""} for t in few(points=1, seeds=(0,))],
    "many strata": simulate(levels=(2, 4, 8, 16, 32), widths=(768, 1536, 3072), points=1),
    "names to escape": few(name='[bold]a|b & <c> "d" 100% _$#{}~^\\ é 木'),
}


@pytest.fixture(params=list(ODD))
def report(request: pytest.FixtureRequest) -> Report:
    return Report(Record(frame_of(ODD[request.param])))


def test_every_format_comes(report: Report, tmp_path) -> None:
    tables = [report.table(name) for name in TABLES]
    for table in tables:
        assert formats.csv(table).count("\n") >= len(table.frame)
        assert formats.to_json(table).startswith("[")
        formats.parquet(table, tmp_path / "x.parquet")
    assert "## Verdicts" in formats.markdown(report, tables)
    tex = latex.document(report, tables)
    assert tex.count("\\begin{longtable}") == tex.count("\\end{longtable}")
    for width in (60, 200):
        out = io.StringIO()
        show(report, Console(file=out, width=width))
        assert str(len(report.frame)) in out.getvalue()


def test_every_chart_is_drawn_or_left_out(report: Report) -> None:
    for name, make in CHARTS.items():
        chart = make(report)
        if chart.panels:
            figure(chart).canvas.draw()
            drawn = svg.chart(chart)
            assert "nan" not in drawn, name
            ElementTree.fromstring(f"<div>{drawn}</div>")


def test_the_page_comes(report: Report) -> None:
    assert "</html>" in page(report)
