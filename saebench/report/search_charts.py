"""What the charts of the search show: FVU against the learning rate, importances, all trials at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.report import points
from saebench.report.chart import Axis, Chart, Panel, Series
from saebench.report.comparison import FVU, L0
from saebench.report.panels import by_panel, grouped, legend, trial_tip
from saebench.report.points import usable
from saebench.report.table import plain
from saebench.runs.stopped import metric_label

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report

_RATES = {"lr_factor": "learning rate, as a multiple of the default (lr_factor)", "lr": "learning rate (lr)"}
_LEAST = 3
"""Least number of different values for a curve."""


# --- learning rate ---------------------------------------------------------------------------------------------------


def rate(report: Report) -> Chart:
    """The objective against the learning rate, the searching seed alone, with the ends of the searched range."""
    arms, panels, key = points.arms(report.frame), [], report.record.objective
    name = next((name for name in _RATES if name in report.searched), "")
    shown = f"{metric_label(key)} on validation texts" if key.startswith("eval/") else key
    note = (
        "Every complete trial of the seed that searches; the large mark is the setting that was chosen. Dashed lines "
        "are the ends of the range: where the best lies at an end, widen it."
    )
    if name and key in report.frame.columns:
        frame = report.frame
        first = frame[(frame["seed"] == frame.groupby("sweep")["seed"].transform("min")) & usable(frame, key)]
        ends = _range(report, name)
        for title, mine in by_panel(report, first[first[name].notna()]):
            series = [_rates(report, rows, name, arms) for _, rows in mine.groupby("arm", sort=False)]
            if mine[name].nunique() >= _LEAST:
                best = [s for found in series for s in found]
                panels.append(Panel(title, _RATES[name], shown, best, x_log=True, y_log=True, marks=ends))
    return Chart("lr", "Error against the learning rate", note, panels, legend(arms, ()))


def _rates(report: Report, rows: DataFrame, name: str, arms: Sequence[str]) -> list[Series]:
    """Return the line of an arm through its trials, with a separate mark for the chosen one."""
    key = report.record.objective
    rows = rows[(rows[name] > 0) & (rows[key] > 0)].sort_values(name)
    arm = str(rows["arm"].iloc[0]) if len(rows) else ""
    i = arms.index(arm) if arm else 0
    known = set(zip(report.chosen["sweep"], report.chosen["stratum"], report.chosen["point"], strict=True))
    mine = [key in known for key in zip(rows["sweep"], rows["stratum"], rows["point"], strict=True)]
    chosen = rows[np.array(mine, dtype=bool)]
    others = rows[~rows["run_id"].isin(chosen["run_id"])]
    found = [Series(arm, i, "line", rows[name].tolist(), rows[key].tolist(), faint=True)] if len(rows) > 1 else []
    for shown, faint in ((others, True), (chosen, False)):
        tips = [trial_tip(row) for row in shown.to_dict("records")]
        if tips:
            found.append(Series(arm, i, "points", shown[name].tolist(), shown[key].tolist(), tips=tips, faint=faint))
    return found


def _range(report: Report, name: str) -> list[tuple[float, str]]:
    """The ends of the range that all sweeps of the report search, if it is one range."""
    ranges = set()
    for source in report.record.sources:
        spec = source.lock.get("spec")
        train = spec.get("train") if isinstance(spec, dict) else None
        value = train.get(name) if isinstance(train, dict) else None
        if isinstance(value, dict) and all(isinstance(value.get(end), int | float) for end in ("low", "high")):
            ranges.add((float(value["low"]), float(value["high"])))
    if len(ranges) != 1:
        return []
    (low, high) = ranges.pop()
    return [(low, "lowest tried"), (high, "highest tried")] if 0 < low < high else []


# --- importances -----------------------------------------------------------------------------------------------------


def importance(report: Report) -> Chart:
    """How much of the variance inside strata each searched parameter explains, a row per arm and parameter."""
    rows = report.table("importances").rows()
    arms = points.arms(report.frame)
    if len({row["parameter"] for row in rows}) < 2:  # one parameter explains all that there is to explain
        return Chart("importance", "Which parameters matter", "", [])
    names = [f"{row['arm']}: {row['parameter']}" for row in rows]
    series = [
        Series(row["arm"], arms.index(row["arm"]), "bars", [100 * row["importance"]], [float(at)],
               tips=[f"{name}: {100 * row['importance']:.0f}% ({row['trials']} trials)"])
        for at, (row, name) in enumerate(zip(rows, names, strict=True)) if row["arm"] in arms
    ]  # fmt: skip
    note = "Share of the variance of the objective inside strata that a parameter explains (fANOVA)."
    panel = Panel("", "share of the variance (%)", "", series, rows=names)
    return Chart("importance", "Which parameters matter", note, [panel] if series else [])


# --- parallel coordinates --------------------------------------------------------------------------------------------


def parallel(report: Report) -> Chart:
    """Every complete trial as a line through its parameters and results."""
    frame, panels = report.frame, []
    for group, trials in grouped(frame[usable(frame, FVU)]):
        keys = ["arm", "level", "dict_size", *report.searched, L0, "final/dead_fraction", FVU]
        keys = [key for key in keys if trials[key].notna().any() and trials[key].nunique() > 1]
        scaled = [_scale(trials[key], _TITLES.get(key, key)) for key in keys]
        rows = trials.to_dict("records")
        lines = [[float(heights[i]) for _, heights in scaled] for i in range(len(rows))]
        shades = _ranks(trials[report.record.objective if report.record.objective in trials else FVU])
        shades = 1 - shades if report.record.maximize else shades
        x = [float(i) for i in range(len(scaled))]
        series = [Series(row["arm"], -1, "line", x, line, tips=[trial_tip(row)], faint=True, shade=float(shade))
                  for row, line, shade in zip(rows, lines, shades, strict=True)
                  if all(map(math.isfinite, line))]  # fmt: skip
        series.sort(key=lambda s: -(s.shade or 0.0))  # the best are drawn last, on top
        if len(scaled) > 1:
            panels.append(Panel(group, "", "", series, axes=[axis for axis, _ in scaled]))
    note = (
        "A line per complete trial through its parameters and results, from the best (strong) to the worst (pale) by "
        "the objective. Drag along an axis to keep only the lines that pass there; click the axis to clear the "
        "selection."
    )
    return Chart("parallel", "All trials at once", note, [p for p in panels if p.series])


def _ranks(values: Any) -> Any:
    """Return ranks from 0 for the lowest value to 1 for the highest, so that a few bad trials do not compress all
    others."""
    order = np.argsort(np.argsort(values.to_numpy(dtype=float)))
    return order / max(1, len(order) - 1)


_TITLES = {
    "arm": "arm",
    "level": "sparsity",
    "dict_size": "latents",
    L0: "L0",
    FVU: "FVU",
    "final/dead_fraction": "dead",
}


def _scale(values: Any, title: str) -> tuple[Axis, Any]:
    """Return heights from 0 to 1, logarithmic if the values span more than a factor of 4; words in their order."""
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
