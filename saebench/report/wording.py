"""Differences and intervals in the units of their metric, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from saebench.report.comparison import SAME, Comparison
from saebench.report.metric_table import ALL


def percent(log_ratio: float) -> float:
    """Relative difference in percent: log 0.959 -> -4.1."""
    return 100 * math.expm1(log_ratio)


def worded(log_ratio: float) -> str:
    """In words: 4.1% lower, 0.30% higher, under 0.01% higher, equal."""
    value = percent(log_ratio)
    if abs(log_ratio) < SAME:
        return "equal"
    return f"{_digits(abs(value))}% {side_of(value)}"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.01 else "under 0.01"


def side_of(value: float) -> str:
    return "lower" if value < 0 else "higher"


def value_of(c: Comparison, difference: float) -> float:
    """Return a difference of losses as a difference of values: in percent if the metric is compared by its ratio."""
    metric = ALL[c.metric]
    if metric.comparison == "ratio":
        return percent(difference)
    return -difference if metric.direction == "maximize" else difference


def difference_text(c: Comparison, difference: float) -> str:
    """For example 4.1% lower, 0.012 higher, 0.3 points lower (of a share in percent), equal."""
    if ALL[c.metric].comparison == "ratio":
        return worded(difference)
    if abs(difference) < SAME:
        return "equal"
    value = value_of(c, difference)
    if c.metric == "dead_fraction":
        return f"{_digits(100 * abs(value))} points {side_of(value)}"
    return f"{_small(abs(value))} {side_of(value)}"


def _small(value: float) -> str:
    return "under 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.3f}"


def interval_text(c: Comparison) -> str:
    """Return the interval over seeds and search, smaller number first if both ends have one sign: 3.0 to 5.2."""
    return span(c, c.low, c.high)


def span(c: Comparison, low: float, high: float) -> str:
    ends = sorted((low, high), key=lambda end: value_of(c, end))
    if low * high > 0:
        near, far = sorted(ends, key=abs)
        first, second = (difference_text(c, end).split(" ")[0].rstrip("%") for end in (near, far))
        return f"{first} to {second}"
    return f"{_signed(c, ends[0])} to {_signed(c, ends[1])}"


def _signed(c: Comparison, difference: float) -> str:
    """For example -1.4% or +0.012."""
    value = value_of(c, difference)
    if ALL[c.metric].comparison == "ratio":
        return f"{value:+.2g}%"
    return f"{100 * value:+.2g} points" if c.metric == "dead_fraction" else f"{value:+.2g}"


def amount(c: Comparison, difference: float) -> str:
    ratio = ALL[c.metric].comparison == "ratio"
    return f"{_digits(100 * difference)}%" if ratio else _small(difference)


def margin_text(c: Comparison) -> str:
    """For example 0.5%, or 0.005."""
    return f"{100 * c.margin:g}%" if ALL[c.metric].comparison == "ratio" else f"{c.margin:g}"


def listed(names: Sequence[str]) -> str:
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"
