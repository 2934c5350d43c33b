"""The charts: from the report's data to `Chart`s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.report import points
from saebench.report.chart import Chart, Panel, Series, at_values
from saebench.report.columns import trial_name
from saebench.report.comparison import FVU, L0
from saebench.report.forest import forest
from saebench.report.panels import PANELS, by_panel, grouped, legend, stratum_tip, trial_tip
from saebench.report.points import usable
from saebench.report.search_charts import importance, parallel, rate
from saebench.report.table import Row
from saebench.report.tables import on_front
from saebench.runs.stopped import metric_label

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report

_DODGE = 5.0
"""Pixels between the arms at one L0."""
SEPARATE = 24
"""Most curves of a panel besides those of the chosen points."""


# --- Pareto ----------------------------------------------------------------------------------------------------------


def pareto(report: Report) -> Chart:
    """L0 against FVU, a line per arm and width through the best points, faint dots for every other complete trial."""
    arms, panels = points.arms(report.frame), []
    widths = sorted(report.frame["dict_size"].dropna().unique())
    for group, rows in grouped(report.strata.frame):
        series = [_other_trials(report, group, arm, i) for i, arm in enumerate(arms)]
        for (arm, width), mine in rows.groupby(["arm", "dict_size"], sort=False):
            mine = mine[(mine["l0"] > 0) & (mine["fvu"] > 0)].sort_values("l0")
            tips = [stratum_tip(row) for row in mine.to_dict("records")]
            x, y, low, high = (mine[key].tolist() for key in ("l0", "fvu", "fvu_low", "fvu_high"))
            i, dash = arms.index(str(arm)), widths.index(width)
            shift = _DODGE * (i - (len(arms) - 1) / 2)
            line = Series(f"{arm} n={width:g}", i, "line", x, y, low, high, tips, dash, marked=True, shift=shift)
            series.append(line)
        series = [s for s in series if len(s.x)]
        if series:
            at = at_values(rows.loc[rows["level_name"].isin(["k", "target_l0"]), "level"])
            panels.append(Panel(group, "latents that fire per text (L0)", "fraction of variance unexplained (FVU)",
                                [*_front(rows), *series], x_log=True, y_log=True, x_at=at))  # fmt: skip
    note = (
        "Down and left is better; both axes are logarithmic. Lines join the best settings of each arm, bars are 95% "
        "intervals over seeds (side by side where they would cover each other), faint marks are the other complete "
        "trials, the grey band is the Pareto front: what no other setting beats in both."
    )
    return Chart("pareto", "Sparsity against error", note, panels, legend(arms, widths))


def _other_trials(report: Report, group: str, arm: str, index: int) -> Series:
    frame = report.frame
    mine = frame[(frame["group"] == group) & (frame["arm"] == arm) & usable(frame, FVU) & usable(frame, L0)]
    mine = mine[~mine["run_id"].isin(report.chosen["run_id"]) & (mine[FVU] > 0) & (mine[L0] > 0)]
    tips = [trial_tip(row) for row in mine.to_dict("records")]
    return Series(arm, index, "points", mine[L0].tolist(), mine[FVU].tolist(), tips=tips, faint=True)


def _front(rows: DataFrame) -> list[Series]:
    found = list(zip(rows["l0"], rows["fvu"], strict=True))
    front = sorted(p for p, on in zip(found, on_front(found), strict=True) if on and min(p) > 0)
    if len(front) < 2:
        return []
    return [Series("Pareto front", -1, "line", [x for x, _ in front], [y for _, y in front], faint=True)]


# --- panels per stratum ----------------------------------------------------------------------------------------------


def curves(report: Report) -> Chart:
    """The objective over examples seen, a panel per sparsity and width."""
    arms, panels, key = points.arms(report.frame), [], report.record.objective
    found = {run: mine.sort_values("samples") for run, mine in report.curves.groupby("run_id")}
    best = set(report.chosen["run_id"])
    trials = report.frame[report.frame["run_id"].isin(found)]
    positive = bool((report.curves["value"] > 0).all())
    shown = f"{metric_label(key)} on validation texts" if key.startswith("eval/") else key
    for title, mine in by_panel(report, trials):
        series: list[Series] = []
        order = sorted(mine.to_dict("records"), key=lambda row: row["run_id"] in best)
        others = [row for row in order if row["run_id"] not in best][:SEPARATE]
        for row in [*others, *(row for row in order if row["run_id"] in best)]:
            curve, faint = found[row["run_id"]], row["run_id"] not in best
            x, y = curve["samples"].tolist(), curve["value"].tolist()
            tip, stopped = [trial_tip(row)], row["state"] in ("pruned", "failed")
            series.append(Series(row["arm"], arms.index(row["arm"]), "line", x, y, tips=tip, faint=faint, ends=stopped))
        panels.append(Panel(title, "embeddings seen in training", shown, series, y_log=positive))
    note = (
        f"{shown} over the embeddings seen, a panel per sparsity and width. Strong lines are the seeds of the chosen "
        "setting, faint ones the other settings; a cross is where a trial was stopped."
    )
    return Chart("curves", "Learning curves", note, panels, legend(arms, ()))


def dead(report: Report) -> Chart:
    """Dead latents against width, a panel per sparsity."""
    arms, panels = points.arms(report.frame), []
    rows = report.strata.frame
    if rows.empty:
        return Chart("dead", "Dead latents against width", "", [])
    rows = rows[np.isfinite(rows["dead_fraction"].astype(float))]
    names = rows["level_name"].where(~rows["level_name"].isin(["k", "target_l0"]), "k")
    for (group, name, level), mine in rows.groupby(["group", names, "level"], sort=True):
        series = []
        for arm, line in mine.groupby("arm", sort=False):
            line = line.sort_values("dict_size")
            tips = [stratum_tip(row) for row in line.to_dict("records")]
            x, y = line["dict_size"].tolist(), (100 * line["dead_fraction"]).tolist()
            series.append(Series(str(arm), arms.index(str(arm)), "line", x, y, tips=tips, marked=True))
        title = f"{name}={level:g}"
        title = f"{group}: {title}" if group else title
        at = at_values(mine["dict_size"])
        if mine["dict_size"].nunique() < 2:  # nothing to see: the table has the number
            continue
        panels.append(
            Panel(title, "latents of the SAE", "latents that never fire (%)", series, x_log=True, y_zero=True, x_at=at)
        )
    note = "Latents that fire on no test text, in percent, against the number of latents; best settings."
    return Chart("dead", "Dead latents against width", note, panels[:PANELS], legend(arms, ()))


# --- distributions ---------------------------------------------------------------------------------------------------


def _first_seeds(report: Report) -> DataFrame:
    """One chosen trial per cell: the lowest seed that has its evaluation."""
    chosen = report.chosen[report.chosen["run_id"].isin(report.evaluations)]
    return chosen.sort_values(["seed"]).drop_duplicates(list(points.CELL)).sort_index()


def density(report: Report) -> Chart:
    """How often latents fire: a histogram of the share of test texts on which each latent fires."""
    arms, panels = points.arms(report.frame), []
    for title, mine in by_panel(report, _first_seeds(report)):
        series = []
        for row in mine.to_dict("records"):
            arrays = report.evaluations[row["run_id"]]
            if "firing" not in arrays or "l0" not in arrays:
                continue
            texts, share = len(arrays["l0"]), arrays["firing"] / len(arrays["l0"])
            edges = (np.unique(np.geomspace(1, texts + 1, 32).round()) - 0.5) / texts  # bins of whole counts
            heights = 100 * np.histogram(share, edges)[0] / len(share) / np.diff(np.log10(edges))
            tip = (
                f"{row['arm']} ({trial_name(row)})\n{100 * np.mean(share == 0):.1f}% of {len(share)} latents never fire"
            )
            tip += f"\n{100 * np.mean(share > 0.1):.1f}% fire on more than a tenth of {texts} texts"
            series.append(_steps(row, arms, edges, heights, tip))
        panels.append(
            Panel(
                title, "share of texts on which a latent fires", "share of latents (% per decade)", series, x_log=True
            )
        )
    note = (
        "How often each latent fires on test texts. Latents that never fire are not in it; the tip says how many. Best "
        "setting of each stratum, one seed."
    )
    return Chart("density", "How often latents fire", note, [p for p in panels if p.series], legend(arms, ()))


def per_example_l0(report: Report) -> Chart:
    """How many latents fire per text."""
    arms, panels = points.arms(report.frame), []
    for title, mine in by_panel(report, _first_seeds(report)):
        rows = [row for row in mine.to_dict("records") if "l0" in report.evaluations[row["run_id"]]]
        counts = [report.evaluations[row["run_id"]]["l0"] for row in rows]
        if not counts:
            continue
        low, high = min(np.quantile(c, 0.001) for c in counts), max(np.quantile(c, 0.999) for c in counts)
        edges = np.arange(low - 0.5, high + 1.5, max(1, round((high - low) / 50)))
        heights = [100 * np.histogram(c, edges)[0] / len(c) for c in counts]
        top = max((h.max() for h, c in zip(heights, counts, strict=True) if np.ptp(c)), default=100)
        series = []
        for row, c, h in zip(rows, counts, heights, strict=True):
            if np.ptp(c) == 0:  # exactly k: a line, or its single bar would dwarf the others
                tip, i = f"{row['arm']} ({trial_name(row)})\nalways {c[0]}", arms.index(row["arm"])
                series.append(Series(row["arm"], i, "line", [c[0], c[0]], [0, 1.05 * top], tips=[tip]))
            else:
                p5, median, p95 = np.quantile(c, [0.05, 0.5, 0.95])
                tip = f"{row['arm']} ({trial_name(row)})\nmean {c.mean():.1f}, median {median:.0f}"
                series.append(_steps(row, arms, edges, h, f"{tip}, 5% to 95%: {p5:.0f} to {p95:.0f}"))
        if any(s.kind == "steps" for s in series):
            panels.append(Panel(title, "latents that fire on a text (L0)", "share of texts (%)", series))
    note = "Latents that fire per test text; a vertical line: always that many. One seed."
    return Chart("l0", "Latents per text", note, panels, legend(arms, ()))


def _steps(row: Row, arms: Sequence[str], edges: Any, heights: Any, tip: str) -> Series:
    """A histogram as the corners of its outline."""
    x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
    return Series(row["arm"], arms.index(row["arm"]), "steps", x.tolist(), y.tolist(), tips=[tip])


CHARTS = {
    "pareto": pareto,
    "forest": forest,
    "curves": curves,
    "lr": rate,
    "dead": dead,
    "density": density,
    "l0": per_example_l0,
    "importance": importance,
    "parallel": parallel,
}
"""Name -> chart, in the order in which a page has them."""
