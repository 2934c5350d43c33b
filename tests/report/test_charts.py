"""What the charts show, and that both ways of drawing them draw it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from sweep_data import SAMPLES, Store, frame_of, simulate, simulate_search

from saebench.errors import UserError
from saebench.report import load, svg
from saebench.report.chart import Panel, Series, limits, tick_label, ticks
from saebench.report.charts import CHARTS, Chart
from saebench.report.document import Report
from saebench.report.plots import save
from saebench.report.record import Record
from saebench.report.sources import Source
from saebench.report.table import make


@pytest.fixture(scope="module")
def report(store: Store) -> Report:
    return load("demo", runs_dir=store.runs)


def lines(panel: Panel) -> list[Series]:
    return [s for s in panel.series if s.kind == "line" and s.arm >= 0]


def test_pareto_has_a_line_per_arm_and_width_through_the_strata(report: Report) -> None:
    (panel,) = CHARTS["pareto"](report).panels
    assert len(lines(panel)) == 3 * 2
    line = next(s for s in lines(panel) if s.label == "batchtopk n=3072")
    assert list(line.x) == [16, 32, 64]
    rows = report.table("strata").frame
    row = rows[(rows["arm"] == "batchtopk") & (rows["dict_size"] == 3072) & (rows["level"] == 32)].iloc[0]
    assert (line.y[1], line.low[1], line.high[1]) == (row["fvu"], row["fvu_low"], row["fvu_high"])
    assert "3 seeds" in line.tips[1]
    assert "4 complete, 1 pruned" in line.tips[1]
    front = next(s for s in panel.series if s.arm < 0)
    assert list(front.x) == [16, 32, 64]
    assert panel.x_at == [16, 32, 64]


def test_curves_are_what_was_recorded_and_pruned_ones_end_in_a_cross(report: Report, store: Store) -> None:
    panels = CHARTS["curves"](report).panels
    assert [p.title for p in panels][:2] == ["k=16, n=1536", "k=32, n=1536"]
    trial = next(t for t in store.trials if t["state"] == "pruned")
    stopped = [s for p in panels for s in p.series if s.ends]
    assert any(list(s.y) == list(trial["curve"].values()) for s in stopped)
    strong = [s for s in panels[0].series if not s.faint]
    assert len(strong) == 3 * 3  # arms x seeds
    assert all(s.x[-1] == SAMPLES for s in strong)


def test_dead_features_are_in_percent_against_width(report: Report) -> None:
    panel = CHARTS["dead"](report).panels[0]
    assert list(panel.series[0].x) == [1536, 3072]
    assert list(panel.series[0].y) == pytest.approx([2, 4])


def test_density_s_histogram_holds_every_latent_that_fires(report: Report) -> None:
    panel = CHARTS["density"](report).panels[0]
    outline = panel.series[0]
    edges, heights = np.array(outline.x[::2]), np.array(outline.y[1:-1:2])
    alive = (heights * np.diff(np.log10(edges))).sum()
    firing = report.evaluations[report.chosen["run_id"].iloc[0]]["firing"]
    assert alive == pytest.approx(100 * np.mean(firing > 0))
    assert 0 < np.mean(firing == 0) < 1
    assert "never fire" in outline.tips[0]


def test_l0_per_text_is_a_line_for_topk_and_a_histogram_for_the_others(report: Report) -> None:
    panel = CHARTS["l0"](report).panels[0]
    by_arm = {s.label: s for s in panel.series}
    assert by_arm["topk"].kind == "line"
    assert set(by_arm["topk"].x) == {16}
    heights = np.array(by_arm["batchtopk"].y[1:-1:2])
    assert heights.sum() == pytest.approx(100, abs=1)


def test_parallel_coordinates_have_a_line_per_complete_trial(report: Report) -> None:
    (panel,) = CHARTS["parallel"](report).panels
    assert len(panel.series) == (report.frame["state"] == "complete").sum()
    assert [axis.title for axis in panel.axes] == ["arm", "sparsity", "latents", "lr", "L0", "dead", "FVU"]
    assert all(0 <= y <= 1 for s in panel.series for y in s.y)


@pytest.mark.parametrize("name", [name for name in CHARTS if name not in ("lr", "importance")])
def test_every_chart_becomes_a_picture(report: Report, tmp_path: Path, name: str) -> None:
    chart = CHARTS[name](report)
    save(chart, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    save(chart, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    ElementTree.fromstring(text)
    assert chart.title in text  # words stay words


@pytest.mark.parametrize("name", [name for name in CHARTS if name not in ("lr", "importance")])
def test_every_chart_becomes_part_of_the_page(report: Report, name: str) -> None:
    chart = CHARTS[name](report)
    page = ElementTree.fromstring(f"<div>{svg.chart(chart)}</div>")
    plots = [e for e in page.iter("svg") if e.get("class") == "plot"]
    assert len(plots) == len(chart.panels)
    assert all(plot.get("aria-label", "").startswith(chart.title) for plot in plots)
    assert [li.text or li[-1].tail for li in page.iter("li")] == [label for label, _, _ in chart.legend]
    tips = {e.get("data-tip") for e in page.iter() if e.get("data-tip")}
    assert tips == {tip.replace("\n", " ") for panel in chart.panels for s in panel.series for tip in s.tips}


def test_the_forest_has_the_line_of_no_difference_and_a_row_per_pair_or_stratum(report: Report, store: Store) -> None:
    (panel,) = CHARTS["forest"](report).panels
    assert panel.marks == [(0.0, "no difference")]
    assert len(panel.rows) == len(report.comparisons) == len(panel.series)
    assert list(panel.rows) == [f"{c.a} vs {c.b}" for c in sorted(report.comparisons, key=lambda c: c.mean)]
    two = load("demo", runs_dir=store.runs, where=["type=topk"]).comparisons
    assert two == []
    one = Report(Record(frame_of(simulate())))
    (panel,) = CHARTS["forest"](one).panels
    assert list(panel.rows)[:2] == ["all strata", "k=16, n=1536"]
    (found,) = one.comparisons
    whole = panel.series[0]
    assert (whole.x[0], whole.x_low[0], whole.x_high[0]) == pytest.approx(
        [100 * np.expm1(v) for v in (found.mean, found.low, found.high)]
    )
    assert whole.arm == 1  # batchtopk's colour: it is better
    drawn = svg.chart(CHARTS["forest"](one))
    assert '<path class="zero"' in drawn


def test_error_against_lr_shows_the_range_and_the_chosen_trial() -> None:
    frame = frame_of(simulate_search())
    lock = {"spec": {"train": {"lr": {"low": 0.001, "high": 0.03, "log": True}}}}
    report = Report(Record(frame, sources=(Source("demo", "", "0", "", None, lock),)))
    panels = CHARTS["lr"](report).panels
    assert [p.title for p in panels] == ["k=16, n=1536", "k=32, n=1536"]
    for panel in panels:
        assert [x for x, _ in panel.marks] == [0.001, 0.03]
        chosen = [s for s in panel.series if s.kind == "points" and not s.faint]
        assert [len(s.x) for s in chosen] == [1, 1]
        for s in chosen:
            others = next(o for o in panel.series if o.kind == "line" and o.arm == s.arm)
            assert s.y[0] == min(others.y)


def test_importances_are_bars_and_one_parameter_is_none() -> None:
    rows = [{"arm": arm, "parameter": p, "importance": v, "trials": 9}
            for arm in ("topk", "batchtopk") for p, v in (("lr", 0.8), ("batch_size", 0.2))]  # fmt: skip
    report = Report(Record(frame_of(simulate())))
    for shown, count in ((rows, 4), ([r for r in rows if r["parameter"] == "lr"], 0)):
        table = make("importances", "Importances", shown, [])
        with patch.object(Report, "table", lambda *_, table=table, **__: table):
            chart = CHARTS["importance"](report)
        assert sum(len(p.rows) for p in chart.panels) == count
        if count:
            drawn = svg.chart(chart)
            assert drawn.count('class="fill') == 4
            assert ">80%<" in drawn


def test_figures_of_one_width_or_one_value_are_not_drawn() -> None:
    report = Report(Record(frame_of(simulate(widths=(1536,), arms={"topk": 1.0}))))
    assert CHARTS["dead"](report).panels == []
    assert CHARTS["l0"](report).panels == []


def test_intervals_of_arms_at_one_l0_stand_side_by_side(report: Report) -> None:
    (panel,) = CHARTS["pareto"](report).panels
    shifts = {s.arm: s.shift for s in lines(panel)}
    assert sorted(shifts.values()) == [-5, 0, 5]
    drawn = svg.chart(CHARTS["pareto"](report))
    xs = {
        round(float(x), 1)
        for x in re.findall(r'class="mark arm\d" href="#mark\d" transform="translate\(([\d.]+)', drawn)
    }
    assert len(xs) == 9  # three levels, three arms


def test_a_figure_for_a_paper_has_its_width_no_title_and_embedded_fonts(report: Report, tmp_path: Path) -> None:
    save(CHARTS["pareto"](report), tmp_path / "paper.pdf", width=3.3)
    data = (tmp_path / "paper.pdf").read_bytes()
    assert re.search(rb"/MediaBox \[ 0 0 237\.6\d* ", data)  # 3.3 inches of 72 points
    assert b"/FontFile2" in data
    assert b"/Type3" not in data
    save(CHARTS["pareto"](report), tmp_path / "paper.svg", width=3.3)
    assert CHARTS["pareto"](report).title not in (tmp_path / "paper.svg").read_text()


def test_the_same_svg_twice_is_the_same_to_the_byte(report: Report, tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save(CHARTS["pareto"](report), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"plots are written as \.png, \.svg, \.pdf"):
        save(Chart("pareto", "t", "n", []), tmp_path / "x.gif")
    with pytest.raises(UserError, match="nothing to draw for 'pareto'"):
        save(Chart("pareto", "t", "n", []), tmp_path / "x.png")


def test_ticks_are_round_numbers_inside() -> None:
    assert ticks(0, 10, False) == [0, 2, 4, 6, 8, 10]
    assert ticks(8, 70, True) == pytest.approx([10, 20, 30, 40, 50, 70])
    assert ticks(1e-5, 1, True) == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
    assert ticks(0.56, 0.74, True) == pytest.approx([0.6, 0.65, 0.7])
    assert ticks(3, 3, False) == [3]


def test_a_stratum_alone_is_a_mark(store: Store) -> None:
    report = load("demo", runs_dir=store.runs, where=["type=topk", "k=16", "dict_size=1536"])
    drawn = svg.chart(CHARTS["pareto"](report))
    assert '<use class="mark arm0" href="#mark0" transform="translate(' in drawn


def test_tick_labels_are_short() -> None:
    assert [tick_label(v) for v in (0, 0.25, 1536, 25_000, 2_000_000, 1e-5)] == [
        "0",
        "0.25",
        "1536",
        "25k",
        "2M",
        "1e-5",
    ]


def test_limits_hold_the_intervals_and_nothing_that_is_not_a_number() -> None:
    series = Series("a", 0, "line", [1, 2, float("nan")], [5, float("nan"), 6], [4, 4, 4], [9, 9, float("nan")])
    x_low, x_high, y_low, y_high = limits(Panel("", "", "", [series]))
    assert (x_low, x_high) == (0.5, 1.5)
    assert y_low < 4
    assert 9 < y_high < 10
