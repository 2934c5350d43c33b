"""A comparison in a sentence, and what would decide it if it is undecided."""

from __future__ import annotations

import math

from saebench.report.comparison import SAME, Comparison
from saebench.report.judge import label
from saebench.report.metric_table import ALL
from saebench.report.table import number_of
from saebench.report.wording import (
    amount,
    difference_text,
    interval_text,
    margin_text,
    percent,
    side_of,
    span,
    value_of,
    worded,
)

MANY_SEEDS = 100
"""Most seeds that are suggested."""
ENOUGH_SEEDS = 4
"""Seeds to suggest if only one compares: the first searches, three compare."""


def sentence(c: Comparison) -> str:
    """The verdict of one pair of arms in one metric."""
    name, where = label(c.metric), f" ({c.group})" if c.group else ""
    if c.outcome == "not compared":
        why = f": {c.left_out[0]}" if c.left_out else ""
        return f"{c.a} and {c.b} were not compared{where}: they have no common stratum or range of L0{why}"
    if c.outcome == "same":
        return f"{c.a} and {c.b} have the same {name} at equal L0{where}, in {_all(c)}; {_seeds(c)}{_texts(c)}"
    if not c.strata:
        return f"so far ({c.unfinished}), {c.a} and {c.b} have no common stratum to compare{where}"
    found = f"{name} of {c.a} {difference_text(c, c.mean)}"
    if c.outcome == "so far":
        return f"so far ({c.unfinished}), nothing is decided between {c.a} and {c.b}{where}: {found}, {_lower(c)}"
    interval = f"(95% CI {interval_text(c)})" if math.isfinite(c.low) else ""
    if c.decided:
        a, b = (c.a, c.b) if c.outcome == "better" else (c.b, c.a)
        better = "reconstructs better than" if c.metric == "fvu" else f"is better than {b} in {name}"
        head = f"{a} {better} {b} at equal L0{where}" if c.metric == "fvu" else f"{a} {better} at equal L0{where}"
        mean = difference_text(c, c.mean if a == c.a else -c.mean)
        return f"{head}: {name} {mean} {interval}, in {_strata(c)}; {_seeds(c)}{_texts(c)}"
    if c.outcome == "equal":
        text = f"{c.a} and {c.b} are equal within {margin_text(c)} at equal L0{where}: {found} {interval}"
        return f"{text}; {_seeds(c)}{_texts(c)}"
    if c.outcome == "small":
        text = f"{c.a} and {c.b} differ in {name} at equal L0{where} certainly, but by too little to matter: {found}"
        return f"{text} {interval}, less than {margin_text(c)}; {_seeds(c)}{_texts(c)}"
    head = f"the data do not decide between {c.a} and {c.b} at equal L0{where}: {found}"
    return f"{head} {interval or _no_interval(c)}, {_lower(c)}; {_seeds(c)}{_texts(c)}; {what_would_decide(c)}"


def _no_interval(c: Comparison) -> str:
    """Return why there is no interval over seeds: otherwise the one over texts would read as the whole error."""
    if not math.isfinite(c.search):
        why = "too few points"
    else:
        why = "one comparing seed" if c.seeds <= 1 else "the seeds gave the same values"
    return f"(no interval over seeds: {why})"


def what_would_decide(c: Comparison) -> str:
    """Return why a comparison is undecided, and what to do."""
    if c.edge:
        return f"a best point lies at the edge of its range ({', '.join(c.edge)}): widen the range"
    if not math.isfinite(c.search):
        wanted = f"about {c.points} points would do" if c.points else "draw more points (search.points)"
        return f"too few points to know the best setting of each arm: {wanted}"
    if c.seeds <= 1:
        return f"one seed cannot tell a difference from the luck of a seed; run at least {ENOUGH_SEEDS} seeds"
    if not math.isfinite(c.low):
        return f"its {c.seeds} seeds gave the same values: they did not vary the training"
    if c.low * c.high > 0 and not c.excludes_zero:
        return "the difference is within the noise of the test texts: use more texts, not more seeds"
    if c.excludes_zero:
        return (
            "decided if it were the only comparison, but not after Holm's correction over all of them: run more seeds"
        )
    if c.search >= abs(c.mean) and c.points:
        return (
            f"the search is uncertain by {amount(c, c.search)}: about {c.points} points would locate the best settings"
        )
    if c.search >= abs(c.mean) > 0 and c.search > 0:
        return f"the search is uncertain by {amount(c, c.search)}, more than the difference"
    if c.needed is None or c.needed > MANY_SEEDS:
        return f"more than {MANY_SEEDS} seeds would be needed: treat them as equal"
    return f"about {max(c.needed, c.seeds + 1)} seeds would decide it, if the true difference is this one"


def _lower(c: Comparison) -> str:
    side = "higher" if ALL[c.metric].direction == "maximize" else "lower"
    return f"{side} in {_strata(c)}"


def _strata(c: Comparison) -> str:
    return f"{c.lower} of {len(c.strata)} strata"


def _all(c: Comparison) -> str:
    return f"all {len(c.strata)} strata" if len(c.strata) > 1 else "the one stratum"


def _seeds(c: Comparison) -> str:
    return number_of(c.seeds, "seed")


def _texts(c: Comparison) -> str:
    """Return further information: the other interval, search error, interpolation, strata left out, unequal L0."""
    parts = []
    if c.search > 0 and math.isfinite(c.search):
        parts.append(f"search error {amount(c, c.search)} included")
    if c.texts and max(abs(c.text_low), abs(c.text_high)) < SAME:
        parts.append(f"equal over {c.texts:,} test texts, too")
    elif c.texts:
        ends = span(c, c.text_low, c.text_high)
        side = f" {side_of(value_of(c, c.text_low))}" if c.text_low * c.text_high > 0 else ""
        unit = "%" if side and ALL[c.metric].comparison == "ratio" else ""
        parts.append(f"over {c.texts:,} test texts {ends}{unit}{side}")
    if c.interpolated:
        parts.append(f"interpolated along L0 in {c.interpolated} of {len(c.strata)} strata")
    if c.left_out:
        parts.append(f"{len(c.left_out)} left out")
    gap = sum(s.l0_gap for s in c.strata) / len(c.strata)
    if abs(percent(gap)) >= 1:
        parts.append(f"measured L0 of {c.a} {worded(gap)}")
    return "".join(f"; {part}" for part in parts)
