"""What the plots show."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.report import points
from saebench.report.chart import Axis, Chart, Panel, Series, at_values
from saebench.report.columns import sparsity, trial_name
from saebench.report.comparison import FVU, L0
from saebench.report.points import usable
from saebench.report.table import Row, percentage, plain, trial_counts
from saebench.report.tables import on_front

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report

PANELS = 12
"""Most panels of one chart."""
SEPARATE = 24
"""Most curves of a panel beside the chosen points'."""


# --- Pareto ----------------------------------------------------------------------------------------------------------


def pareto(report: Report) -> Chart:
    """L0 against FVU, a line per arm and width through the best points, faint dots for every other complete trial."""
    arms, panels = points.arms(report.frame), []
    widths = sorted(report.frame["dict_size"].dropna().unique())
    for group, rows in _grouped(report.strata.frame):
        series = [_other_trials(report, group, arm, i) for i, arm in enumerate(arms)]
        for (arm, width), mine in rows.groupby(["arm", "dict_size"], sort=False):
            mine = mine[(mine["l0"] > 0) & (mine["fvu"] > 0)].sort_values("l0")
            tips = [_stratum_tip(row) for row in mine.to_dict("records")]
            x, y, low, high = (mine[key].tolist() for key in ("l0", "fvu", "fvu_low", "fvu_high"))
            i, dash = arms.index(str(arm)), widths.index(width)
            series.append(Series(f"{arm} n={width:g}", i, "line", x, y, low, high, tips, dash, marked=True))
        series = [s for s in series if len(s.x)]
        if series:
            at = at_values(rows.loc[rows["level_name"].isin(["k", "target_l0"]), "level"])
            panels.append(Panel(group, "L0 (latents that fire per example)", "FVU on the hold-out",
                                [*_front(rows), *series], x_log=True, y_log=True, x_at=at))  # fmt: skip
    note = (
        "FVU against L0 on the hold-out, both axes logarithmic; down and left is better. Lines join the best points of "
        "the strata, bars are 95% intervals over seeds, faint marks are the other complete trials; the grey line is "
        "the Pareto front."
    )
    return Chart("pareto", "L0 against FVU", note, panels, _legend(arms, widths))


def _grouped(rows: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    for group, mine in rows.groupby("group", sort=False):
        yield str(group), mine


def _legend(arms: Sequence[str], widths: Sequence[float]) -> list[tuple[str, int, int]]:
    """Arms by colour and marker; widths by dash, where there are several."""
    entries = [(arm, i, 0) for i, arm in enumerate(arms)]
    return entries + ([(f"n={width:g}", -1, i) for i, width in enumerate(widths)] if len(widths) > 1 else [])


def _stratum_tip(row: Row) -> str:
    half = row["fvu_high"] - row["fvu"]
    interval = f" ± {half:.4f}" if math.isfinite(half) else ""
    return (
        f"{row['arm']}, {sparsity(row)}, n={plain(row['dict_size'])}\n"
        f"FVU {plain(row['fvu'])}{interval} ({row['seeds']} seeds), L0 {plain(row['l0'])}\n"
        f"dead {percentage(row['dead_fraction'])}\n{trial_counts(row)}"
    )


def _other_trials(report: Report, group: str, arm: str, index: int) -> Series:
    frame = report.frame
    mine = frame[(frame["group"] == group) & (frame["arm"] == arm) & usable(frame, FVU) & usable(frame, L0)]
    mine = mine[~mine["run_id"].isin(report.chosen["run_id"]) & (mine[FVU] > 0) & (mine[L0] > 0)]
    tips = [_trial_tip(row) for row in mine.to_dict("records")]
    return Series(arm, index, "points", mine[L0].tolist(), mine[FVU].tolist(), tips=tips, faint=True)


def _trial_tip(row: Row) -> str:
    return (
        f"{trial_name(row)} {row['state']}: {row['arm']}\n"
        f"{sparsity(row)}, n={plain(row['dict_size'])}, seed {plain(row['seed'])}, lr {plain(row['lr'])}\n"
        f"FVU {plain(row[FVU])}, L0 {plain(row[L0])}"
    )


def _front(rows: DataFrame) -> list[Series]:
    found = list(zip(rows["l0"], rows["fvu"], strict=True))
    front = sorted(p for p, on in zip(found, on_front(found), strict=True) if on and min(p) > 0)
    if len(front) < 2:
        return []
    return [Series("Pareto front", -1, "line", [x for x, _ in front], [y for _, y in front], faint=True)]


# --- panels per stratum ----------------------------------------------------------------------------------------------


def _panels(report: Report, trials: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Trials by data, sparsity and width, arms together; k and target_l0 of one value are one panel."""
    names = trials["level_name"].where(~trials["level_name"].isin(["k", "target_l0"]), "k")
    kinds = trials.groupby(["group", "dict_size", names, "level"], dropna=False)
    for shown, ((group, width, name, level), mine) in enumerate(kinds):
        if shown == PANELS:
            report.record.note(f"plots show the first {PANELS} of {kinds.ngroups} combinations of sparsity and width")
            return
        title = f"{name}={level:g}, n={plain(width)}" if name else f"n={plain(width)}"
        yield (f"{group}: {title}" if group else title), mine


def curves(report: Report) -> Chart:
    """The objective over examples seen, a panel per sparsity and width."""
    arms, panels, key = points.arms(report.frame), [], report.record.objective
    found = {run: mine.sort_values("samples") for run, mine in report.curves.groupby("run_id")}
    best = set(report.chosen["run_id"])
    trials = report.frame[report.frame["run_id"].isin(found)]
    positive = bool((report.curves["value"] > 0).all())
    for title, mine in _panels(report, trials):
        series: list[Series] = []
        order = sorted(mine.to_dict("records"), key=lambda row: row["run_id"] in best)
        others = [row for row in order if row["run_id"] not in best][:SEPARATE]
        for row in [*others, *(row for row in order if row["run_id"] in best)]:
            curve, faint = found[row["run_id"]], row["run_id"] not in best
            x, y = curve["samples"].tolist(), curve["value"].tolist()
            tip, stopped = [_trial_tip(row)], row["state"] in ("pruned", "failed")
            series.append(Series(row["arm"], arms.index(row["arm"]), "line", x, y, tips=tip, faint=faint, ends=stopped))
        panels.append(Panel(title, "examples seen", key, series, y_log=positive))
    note = (
        f"{key} on the hold-out over the examples seen, a panel per sparsity and width. Strong lines are the seeds of "
        "the best point, faint ones the other points; a cross is where a trial was stopped."
    )
    return Chart("curves", "Learning curves", note, panels, _legend(arms, ()))


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
            tips = [_stratum_tip(row) for row in line.to_dict("records")]
            x, y = line["dict_size"].tolist(), (100 * line["dead_fraction"]).tolist()
            series.append(Series(str(arm), arms.index(str(arm)), "line", x, y, tips=tips, marked=True))
        title = f"{name}={level:g}"
        title = f"{group}: {title}" if group else title
        at = at_values(mine["dict_size"])
        panels.append(Panel(title, "latents", "dead latents (%)", series, x_log=True, y_zero=True, x_at=at))
    note = "Latents that never fired on the hold-out, in percent, against the number of latents; best points."
    return Chart("dead", "Dead latents against width", note, panels[:PANELS], _legend(arms, ()))


# --- distributions ---------------------------------------------------------------------------------------------------


def _first_seeds(report: Report) -> DataFrame:
    """One chosen trial per cell: the lowest seed that has its evaluation."""
    chosen = report.chosen[report.chosen["run_id"].isin(report.evaluations)]
    return chosen.sort_values(["seed"]).drop_duplicates(list(points.CELL)).sort_index()


def density(report: Report) -> Chart:
    """How often latents fire: a histogram of the share of hold-out examples on which each latent fires."""
    arms, panels = points.arms(report.frame), []
    for title, mine in _panels(report, _first_seeds(report)):
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
            Panel(title, "share of texts on which a latent fires", "latents (% per decade)", series, x_log=True)
        )
    note = (
        "Histogram of how often each latent fires on the hold-out; latents that never fire are not in it, the tip says "
        "how many. Best point of each stratum, one seed."
    )
    return Chart("density", "Latent density", note, [p for p in panels if p.series], _legend(arms, ()))


def per_example_l0(report: Report) -> Chart:
    """How many latents fire per text."""
    arms, panels = points.arms(report.frame), []
    for title, mine in _panels(report, _first_seeds(report)):
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
        panels.append(Panel(title, "L0 of a text", "texts (%)", series))
    note = "Histogram of the latents that fire per hold-out text; a vertical line: always that many. One seed."
    return Chart("l0", "L0 per text", note, panels, _legend(arms, ()))


def _steps(row: Row, arms: Sequence[str], edges: Any, heights: Any, tip: str) -> Series:
    """A histogram as the corners of its outline."""
    x, y = np.repeat(edges, 2), np.concatenate([[0], np.repeat(heights, 2), [0]])
    return Series(row["arm"], arms.index(row["arm"]), "steps", x.tolist(), y.tolist(), tips=[tip])


# --- parallel coordinates --------------------------------------------------------------------------------------------


def parallel(report: Report) -> Chart:
    """Every complete trial as a line through its parameters and results."""
    frame, arms = report.frame, points.arms(report.frame)
    panels = []
    for group, trials in _grouped(frame[usable(frame, FVU)]):
        keys = ["level", "dict_size", *report.searched, L0, "final/dead_fraction", FVU]
        keys = [key for key in keys if trials[key].notna().any()]
        scaled = [_scale(trials[key], _TITLES.get(key, key)) for key in keys]
        scaled = [(axis, heights) for axis, heights in scaled if len(axis.ticks)]
        rows = trials.to_dict("records")
        lines = [[float(heights[i]) for _, heights in scaled] for i in range(len(rows))]
        x = [float(i) for i in range(len(scaled))]
        series = [Series(row["arm"], arms.index(row["arm"]), "line", x, line, tips=[_trial_tip(row)], faint=True)
                  for row, line in zip(rows, lines, strict=True) if all(map(math.isfinite, line))]  # fmt: skip
        panels.append(Panel(group, "", "", series, axes=[axis for axis, _ in scaled]))
    note = "A line per complete trial through its sparsity, width, searched parameters and results; colours are arms."
    return Chart("parallel", "Parallel coordinates", note, [p for p in panels if p.series], _legend(arms, ()))


_TITLES = {"level": "sparsity", "dict_size": "latents", L0: "L0", FVU: "FVU", "final/dead_fraction": "dead"}


def _scale(values: Any, title: str) -> tuple[Axis, Any]:
    """Heights from 0 to 1, in logarithms where the values span more than a factor of 4; words in their order."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    if np.isfinite(numbers).all() and np.ptp(numbers) > 0:
        low, high = float(numbers.min()), float(numbers.max())
        log = low > 0 and high / low > 4
        inside = [low * (high / low) ** t if log else low + t * (high - low) for t in (0, 0.25, 0.5, 0.75, 1)]
        shown = sorted(set(numbers.tolist())) if len(set(numbers)) <= 5 else inside
        at = [(math.log(v / low) / math.log(high / low) if log else (v - low) / (high - low)) for v in shown]
        heights = np.log(numbers / low) / math.log(high / low) if log else (numbers - low) / (high - low)
        return Axis(title, [(height, f"{v:.4g}") for height, v in zip(at, shown, strict=True)]), heights
    words = sorted(set(map(plain, values)))
    place = {word: i / (len(words) - 1) if len(words) > 1 else 0.5 for i, word in enumerate(words)}
    return Axis(title, [(height, word) for word, height in place.items()]), np.array([place[plain(v)] for v in values])


CHARTS = {
    "pareto": pareto,
    "curves": curves,
    "dead": dead,
    "density": density,
    "l0": per_example_l0,
    "parallel": parallel,
}
"""Name -> chart, in the order in which a page has them."""
