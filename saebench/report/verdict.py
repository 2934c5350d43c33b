"""What the comparisons say, in words: a sentence per comparison, a paragraph per report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from saebench.metrics import METRICS
from saebench.report.compare import SAME, Comparison
from saebench.report.judge import Judged, label
from saebench.report.points import CONTROLS
from saebench.report.table import number_of

MANY_SEEDS = 100
"""Nobody trains more."""
ENOUGH_SEEDS = 4
"""Seeds to ask for where one compares: the first searches, three compare."""


def percent(log_ratio: float) -> float:
    """Relative difference in percent: log 0.959 -> -4.1."""
    return 100 * math.expm1(log_ratio)


def worded(log_ratio: float) -> str:
    """In words: 4.1% lower, 0.30% higher, under 0.01% higher, equal."""
    value = percent(log_ratio)
    if abs(log_ratio) < SAME:
        return "equal"
    return f"{_digits(abs(value))}% {_side(value)}"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.01 else "under 0.01"


def _side(value: float) -> str:
    return "lower" if value < 0 else "higher"


# --- differences in the units of their metric ------------------------------------------------------------------------


def value_of(c: Comparison, difference: float) -> float:
    """A difference of losses as a difference of values: in percent where the metric is compared by its ratio."""
    metric = METRICS[c.metric]
    if metric.comparison == "ratio":
        return percent(difference)
    return -difference if metric.direction == "maximize" else difference


def difference_text(c: Comparison, difference: float) -> str:
    """For example 4.1% lower, 0.012 higher, 0.3 points lower (of a share in percent), equal."""
    if METRICS[c.metric].comparison == "ratio":
        return worded(difference)
    if abs(difference) < SAME:
        return "equal"
    value = value_of(c, difference)
    if c.metric == "dead_fraction":
        return f"{_digits(100 * abs(value))} points {_side(value)}"
    return f"{_small(abs(value))} {_side(value)}"


def _small(value: float) -> str:
    return "under 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.1 else f"{value:.3f}"


def interval_text(c: Comparison) -> str:
    """The interval over seeds and search, smaller number first where both ends are on one side: 3.0 to 5.2."""
    return _span(c, c.low, c.high)


def _span(c: Comparison, low: float, high: float) -> str:
    ends = sorted((low, high), key=lambda end: value_of(c, end))
    if low * high > 0:
        near, far = sorted(ends, key=abs)
        first, second = (difference_text(c, end).split(" ")[0].rstrip("%") for end in (near, far))
        return f"{first} to {second}"
    return f"{_signed(c, ends[0])} to {_signed(c, ends[1])}"


def _signed(c: Comparison, difference: float) -> str:
    """For example -1.4% or +0.012."""
    value = value_of(c, difference)
    if METRICS[c.metric].comparison == "ratio":
        return f"{value:+.2g}%"
    return f"{100 * value:+.2g} points" if c.metric == "dead_fraction" else f"{value:+.2g}"


def margin_text(c: Comparison) -> str:
    """For example 0.5%, or 0.005."""
    return f"{100 * c.margin:g}%" if METRICS[c.metric].comparison == "ratio" else f"{c.margin:g}"


# --- one comparison --------------------------------------------------------------------------------------------------


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
        text = f"{c.a} and {c.b} differ in {name} at equal L0{where} for certain and by too little to matter: {found}"
        return f"{text} {interval}, less than {margin_text(c)}; {_seeds(c)}{_texts(c)}"
    head = f"the data do not decide between {c.a} and {c.b} at equal L0{where}: {found}"
    return f"{head}{f' {interval}' * bool(interval)}, {_lower(c)}; {_seeds(c)}{_texts(c)}; {what_would_decide(c)}"


def what_would_decide(c: Comparison) -> str:
    """Why an undecided comparison is undecided, and what to do."""
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
        return "the difference is within the noise of the test texts: it takes more texts, not more seeds"
    if c.excludes_zero:
        return (
            "decided if it were the only comparison, but not after Holm's correction over all of them: take more seeds"
        )
    if c.search >= abs(c.mean) and c.points:
        return f"the search leaves {_amount(c, c.search)} open: about {c.points} points would locate the best settings"
    if c.search >= abs(c.mean) > 0 and c.search > 0:
        return f"the search leaves {_amount(c, c.search)} open, more than the difference"
    if c.needed is None or c.needed > MANY_SEEDS:
        return f"more than {MANY_SEEDS} seeds would be needed: take them as equal"
    return f"about {max(c.needed, c.seeds + 1)} seeds would decide it, were the true difference this one"


def _amount(c: Comparison, difference: float) -> str:
    ratio = METRICS[c.metric].comparison == "ratio"
    return f"{_digits(100 * difference)}%" if ratio else _small(difference)


def _lower(c: Comparison) -> str:
    side = "higher" if METRICS[c.metric].direction == "maximize" else "lower"
    return f"{side} in {_strata(c)}"


def _strata(c: Comparison) -> str:
    return f"{c.lower} of {len(c.strata)} strata"


def _all(c: Comparison) -> str:
    return f"all {len(c.strata)} strata" if len(c.strata) > 1 else "the one stratum"


def _seeds(c: Comparison) -> str:
    return number_of(c.seeds, "seed")


def _texts(c: Comparison) -> str:
    """What else the reader must know: the other interval, search, interpolation, strata left out, an unequal L0."""
    parts = []
    if c.search > 0 and math.isfinite(c.search):
        parts.append(f"search error {_amount(c, c.search)} included")
    if c.texts and max(abs(c.text_low), abs(c.text_high)) < SAME:
        parts.append(f"equal over {c.texts:,} test texts, too")
    elif c.texts:
        span = _span(c, c.text_low, c.text_high)
        side = f" {_side(value_of(c, c.text_low))}" if c.text_low * c.text_high > 0 else ""
        unit = "%" if side and METRICS[c.metric].comparison == "ratio" else ""
        parts.append(f"over {c.texts:,} test texts {span}{unit}{side}")
    if c.interpolated:
        parts.append(f"interpolated along L0 in {c.interpolated} of {len(c.strata)} strata")
    if c.left_out:
        parts.append(f"{len(c.left_out)} left out")
    gap = sum(s.l0_gap for s in c.strata) / len(c.strata)
    if abs(percent(gap)) >= 1:
        parts.append(f"measured L0 of {c.a} {worded(gap)}")
    return "".join(f"; {part}" for part in parts)


# --- the paragraph ---------------------------------------------------------------------------------------------------


def is_control(arm: str) -> bool:
    """Is this arm a control (`control: frozen_decoder`, say)?"""
    return any(f"({name})" in arm for name in CONTROLS.values())


def paragraph(judged: Sequence[Judged], primary: Sequence[str]) -> str:
    """What is better at what, what is equal, what is undecided and what would decide it: a few sentences."""
    first = primary[0]
    pairs = [found for found in judged if found]
    main = [f for f in pairs if not is_control(_any(f).a) and not is_control(_any(f).b)]
    controls = [f for f in pairs if _is_of(_any(f).a, _any(f).b) or _is_of(_any(f).b, _any(f).a)]
    said = [_said(found, first) for found in main] if len(main) <= _FEW else [_ranking(main, first)]
    said += [_against_control(found) for found in controls]
    return " ".join(f"{_begun(text)}." for text in said if text)


def _begun(text: str) -> str:
    """A sentence with a capital, unless it begins with the name of an arm."""
    return f"{text[0].upper()}{text[1:]}" if text.startswith(("so far", "the data")) else text


_NAMED = 2
"""Undecided metrics up to which they are named: the lines below the paragraph name all."""
_FEW = 1
"""Pairs of arms up to which each has a sentence of its own; more are told as a ranking."""


def _any(found: Judged) -> Comparison:
    return next(iter(found.values()))


def _said(found: Judged, first: str) -> str:
    main = found.get(first) or _any(found)
    others = _others(found, main)
    return f"{sentence(main)}{f'. {others}' * bool(others)}"


def _others(found: Judged, main: Comparison) -> str:
    """The other metrics, by outcome."""
    others = {name: c for name, c in found.items() if c is not main}
    parts = []
    for outcome in ("better", "worse"):
        mine = [f"{label(n)} ({difference_text(c, c.mean)})" for n, c in others.items() if c.outcome == outcome]
        parts += [f"{outcome} in {_list(mine)}"] if mine else []
    equal = [label(n) for n, c in others.items() if c.outcome in ("equal", "small", "same")]
    parts += [f"equal in {_list(equal)}"] if equal else []
    undecided = [label(n) for n, c in others.items() if c.outcome == "undecided"]
    parts += [f"not decided in {_list(undecided)}"] if undecided and len(undecided) <= _NAMED else []
    parts += [f"not decided in {len(undecided)} others"] if len(undecided) > _NAMED else []
    return f"In other metrics {main.a} is {'; '.join(parts)}" if parts else ""


def _ranking(main: Sequence[Judged], first: str) -> str:
    """Which arm leads in the first metric, and over which others that is certain."""
    pairs = [found[first] for found in main if first in found]
    if not pairs:
        return ""
    if any(c.outcome == "so far" for c in pairs):
        return f"so far ({pairs[0].unfinished}), nothing is decided between {_list(_arms(pairs))}"
    wins = dict.fromkeys(_arms(pairs), 0.0)
    for c in pairs:
        if math.isfinite(c.mean):
            wins[c.a], wins[c.b] = wins[c.a] - c.mean, wins[c.b] + c.mean
    leader = max(wins, key=lambda arm: wins[arm])
    mine = [c for c in pairs if leader in (c.a, c.b)]
    beaten = [f"{_other(c, leader)} ({difference_text(c, c.mean if c.a == leader else -c.mean)})"
              for c in mine if _wins(c, leader)]  # fmt: skip
    equal = [_other(c, leader) for c in mine if c.outcome in ("equal", "small", "same")]
    open_ = [c for c in mine if c.outcome == "undecided"]
    parts = [f"better than {_list(beaten)}"] if beaten else []
    parts += [f"equal to {_list(equal)} within {margin_text(mine[0])}"] if equal else []
    parts += [f"not told apart from {_list([_other(c, leader) for c in open_])}"] if open_ else []
    rest = len(pairs) - len(mine)
    more = f". {number_of(rest, 'more pair')} of arms: --table verdict" if rest else ""
    why = f". {what_would_decide(open_[0]).capitalize()}" if open_ else ""
    head = "has the least FVU at equal L0" if first == "fvu" else f"leads in {label(first)} at equal L0"
    return f"{leader} {head}: {'; '.join(parts) or 'nothing to compare it with'}{why}{more}"


def _arms(pairs: Sequence[Comparison]) -> list[str]:
    return list(dict.fromkeys(arm for c in pairs for arm in (c.a, c.b)))


def _other(c: Comparison, arm: str) -> str:
    return c.b if c.a == arm else c.a


def _wins(c: Comparison, arm: str) -> bool:
    return c.outcome == ("better" if c.a == arm else "worse")


def is_of_interest(a: str, b: str) -> bool:
    """Are these two arms, or an arm and its own control? Other pairs are in the tables alone."""
    return not (is_control(a) or is_control(b)) or _is_of(a, b) or _is_of(b, a)


def _is_of(control: str, arm: str) -> bool:
    """Is `control` the control of `arm`?"""
    return is_control(control) and not is_control(arm) and control.partition(" (")[0] == arm.partition(" ")[0]


_DECIDED = ("better", "worse", "equal", "small", "same")


def _against_control(found: Judged) -> str:
    """What an arm is worth: the metrics in which it is above its control."""
    c = _any(found)
    arm, control = (c.b, c.a) if is_control(c.a) else (c.a, c.b)
    if c.outcome == "so far":
        return ""
    beats = [f"{label(n)} ({difference_text(one, one.mean if one.a == arm else -one.mean)})"
             for n, one in found.items() if _wins(one, arm)]  # fmt: skip
    open_ = [label(n) for n, one in found.items() if one.outcome == "undecided"]
    fails = [label(n) for n, one in found.items() if not _wins(one, arm) and one.outcome in _DECIDED]
    its = f"its control ({next(name for name in CONTROLS.values() if f'({name})' in control)})"
    rest = f", not in {_list(fails)}" * bool(fails) + f"; undecided in {_list(open_)}" * bool(open_)
    if beats:
        return f"{arm} beats {its} in {_list(beats)}{rest}"
    if not open_:
        return f"{arm} does not beat {its} in any metric"
    why = f": {what_would_decide(c)}" if c.outcome == "undecided" else ""
    return f"{arm} is not shown to beat {its} in any metric{why}"


def _list(names: Sequence[str]) -> str:
    return "".join(names) if len(names) < 2 else f"{', '.join(names[:-1])} and {names[-1]}"
