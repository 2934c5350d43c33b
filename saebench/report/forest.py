"""The comparisons as a figure: a row per pair of arms (for one pair also per stratum), and a line at no difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from saebench.report import points
from saebench.report.chart import Chart, Panel, Series
from saebench.report.comparison import Comparison, Stratum
from saebench.report.controls import is_control, is_control_of
from saebench.report.judge import label
from saebench.report.metric_table import ALL
from saebench.report.verdict_tables import OUTCOMES
from saebench.report.wording import difference_text, interval_text, margin_text, value_of

if TYPE_CHECKING:
    from saebench.report.document import Report

MOST = 16
"""Most rows of the figure."""


def forest(report: Report) -> Chart:
    """The primary metric: differences with their intervals; an arm's colour means that it is better, grey that nothing
    is decided."""
    first, arms = report.primary[0], points.arms(report.frame)
    pairs = [found[first] for found in report.judged if first in found]
    pairs = [c for c in pairs if math.isfinite(c.mean) and _of_interest(c)][:MOST]
    if not pairs:
        return Chart("forest", "Differences", "", [])
    one = pairs[0] if len(pairs) == 1 else None
    rows = [_row(c, arms) for c in sorted(pairs, key=lambda c: value_of(c, c.mean))]
    if one is not None:
        rows = [("all strata", rows[0][1]), *(_stratum(one, s) for s in one.strata)][:MOST]
    series = [_placed(found, float(at)) for at, (_, found) in enumerate(rows)]
    unit = "%" if ALL[first].comparison == "ratio" else "points" if first == "dead_fraction" else "its own units"
    what = f"{one.a} against {one.b}" if one is not None else "the first against the second"
    panel = Panel(
        "", f"{label(first)} of {what} ({unit})", "", series, rows=[name for name, _ in rows],
        marks=[(0.0, "no difference")],
    )  # fmt: skip
    better = "right" if ALL[first].direction == "maximize" else "left"
    note = (
        f"Differences in {label(first)} at equal L0 with 95% intervals over seeds and search. To the {better} of the "
        f"line {one.a if one is not None else 'the first-named'} is better; an interval that crosses the line leaves "
        "open which. Colour: decided, in the colour of the better arm; grey: not decided."
    )
    return Chart("forest", "Differences between arms" if one is None else f"{one.a} against {one.b}", note, [panel])


def _of_interest(c: Comparison) -> bool:
    controls = is_control(c.a), is_control(c.b)
    return not any(controls) or is_control_of(c.a, c.b) or is_control_of(c.b, c.a)


def _row(c: Comparison, arms: Sequence[str]) -> tuple[str, Series]:
    """The name and the mark of one comparison."""
    winner = {"better": c.a, "worse": c.b}.get(c.outcome, "")
    said = OUTCOMES[c.outcome].format(margin=margin_text(c))
    interval = f" ({interval_text(c)})" if math.isfinite(c.low) else ""
    tip = f"{c.a} against {c.b}: {said}\n{label(c.metric)} {difference_text(c, c.mean)}{interval}"
    ends = sorted((value_of(c, c.low), value_of(c, c.high))) if math.isfinite(c.low) else [math.nan] * 2
    mark = Series(c.a, arms.index(winner) if winner in arms else -1, "points", [value_of(c, c.mean)], [0.0], tips=[tip],
                  x_low=ends[:1], x_high=ends[1:])  # fmt: skip
    return f"{c.a} vs {c.b}", mark


def _stratum(c: Comparison, s: Stratum) -> tuple[str, Series]:
    """Return the name and the mark of one stratum, which is never decided by itself."""
    ends = sorted((value_of(c, s.low), value_of(c, s.high))) if math.isfinite(s.low) else [math.nan] * 2
    name = f"{s.level_name}={s.level:g}, n={s.dict_size:g}" if s.level_name else f"n={s.dict_size:g}"
    tip = f"{name}: {label(c.metric)} {difference_text(c, s.mean)}"
    mark = Series(
        c.a, -1, "points", [value_of(c, s.mean)], [0.0], tips=[tip], x_low=ends[:1], x_high=ends[1:], faint=True
    )
    return name, mark


def _placed(series: Series, row: float) -> Series:
    return replace(series, y=[row])
