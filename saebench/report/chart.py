"""A plot as data: `plots.py` draws a Chart with matplotlib, `svg.py` for the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Okabe and Ito's colours, which colour-blind readers tell apart; arms also differ in their markers."""
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "plus", "star")
DASHES = ("", "5 3", "1.5 2.5", "8 3 1.5 3")
"""SVG dash patterns: widths of an arm."""


@dataclass(frozen=True)
class Series:
    """One line, cloud or histogram. `tips`: one per point if points are marked, else one for the whole line."""

    label: str
    arm: int
    """Which colour and marker; -1: neutral grey."""
    kind: Literal["points", "line", "steps", "bars"]
    """bars: from x = 0 to x, in row y."""
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    """Interval of y, NaN if it has no interval."""
    tips: Sequence[str] = ()
    dash: int = 0
    marked: bool = False
    """Has the arm's marker at every point (a cloud always has)."""
    faint: bool = False
    ends: bool = False
    """Mark the last point with a cross: the trial was stopped there."""
    x_low: Sequence[float] = ()
    x_high: Sequence[float] = ()
    """Interval of x, NaN if it has no interval."""
    shift: float = 0.0
    """Pixels to the right of its place, so that intervals at one x do not cover each other."""
    shade: float | None = None
    """Coloured on a scale from 0 (best) to 1 in place of the arm's colour."""


@dataclass(frozen=True)
class Axis:
    """A vertical axis of parallel coordinates: its title, and labels at heights from 0 to 1."""

    title: str
    ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    x_log: bool = False
    y_log: bool = False
    y_zero: bool = False
    """Start the y axis at 0."""
    x_at: Sequence[float] = ()
    """Positions of labels on the x axis; empty: round numbers."""
    axes: Sequence[Axis] = ()
    """Parallel coordinates: line i of every series is at x = i, y is a height from 0 to 1."""
    rows: Sequence[str] = ()
    """Names of rows, top to bottom, in place of a y axis: y is the number of a row."""
    marks: Sequence[tuple[float, str]] = ()
    """Vertical lines at x with their label: zero, the ends of a range."""


@dataclass(frozen=True)
class Chart:
    """One plot; `note` explains it and is the text for readers who cannot see it."""

    name: str
    title: str
    note: str
    panels: Sequence[Panel]
    legend: Sequence[tuple[str, int, int]] = field(default_factory=tuple)
    """(label, arm, dash)."""


FEW = 8
"""Values up to which an axis is labelled at the values themselves."""


def at_values(values: Iterable[float]) -> list[float]:
    """Labels of an axis: the distinct values if they are few, else none (round numbers)."""
    distinct = sorted({float(v) for v in values if math.isfinite(v)})
    return distinct if len(distinct) <= FEW else []


# --- ticks -----------------------------------------------------------------------------------------------------------


def ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round numbers between `low` and `high`; on a long logarithmic axis 1, 2, 5, or powers of ten only."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        wide = math.log10(high / low)
        if wide < 0.5:
            return ticks(low, high, False)
        steps = (1,) if wide > 2.5 else (1, 2, 5) if wide > 1 else (1, 2, 3, 4, 5, 7)
        return [s * 10.0**d for d in decades for s in steps if low * 0.999 <= s * 10.0**d <= high * 1.001]
    if not high > low:
        return [low]
    rough = (high - low) / 6
    size = 10 ** math.floor(math.log10(rough))
    step = next(s * size for s in (1, 2, 2.5, 5, 10) if s * size >= rough)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def x_ticks(panel: Panel, low: float, high: float) -> Sequence[float]:
    """Return the positions of labels on the x axis."""
    return panel.x_at or ticks(low, high, panel.x_log)


def tick_label(value: float) -> str:
    """Short: 0.25, 1,536, 50k, 2M, 10^-3."""
    if value == 0:
        return "0"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):g}{letter}"
    return f"{value:.0e}".replace("e-0", "e-") if abs(value) < 1e-3 else f"{value:.4g}"


def limits(panel: Panel) -> tuple[float, float, float, float]:
    """(x low, x high, y low, y high) around the data, intervals included, with a margin."""
    xs = [x for s in panel.series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    xs += [x for s in panel.series for x in (*s.x_low, *s.x_high) if math.isfinite(x)]
    xs += [x for x, _ in panel.marks] + [0.0 for s in panel.series if s.kind == "bars"]
    if panel.rows:
        return (*_margin(xs, panel.x_log, 0.06), -0.5, len(panel.rows) - 0.5)
    ys = [y for s in panel.series for y in (*s.y, *s.low, *s.high) if math.isfinite(y) and not (panel.y_log and y <= 0)]
    ys += [0.0] if panel.y_zero else []
    return (*_margin(xs, panel.x_log, 0.04), *_margin(ys, panel.y_log, 0.06))


def _margin(values: Sequence[float], log: bool, share: float) -> tuple[float, float]:
    low, high = (min(values), max(values)) if values else (1.0, 2.0)
    if log:
        factor = (high / low) ** share if high > low else 1.5
        return low / factor, high * factor
    if low == high:
        return low - 0.5 * abs(low or 1), high + 0.5 * abs(high or 1)
    extra = share * (high - low)
    return (0.0 if low == 0 else low - extra), high + extra
