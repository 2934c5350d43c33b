"""What a comparison says, in one sentence."""

from __future__ import annotations

import math

from saebench.report.compare import Comparison
from saebench.report.statistics import MAX_SEEDS
from saebench.report.table import number_of

ENOUGH_SEEDS = 3
"""Seeds to ask for where there is one."""
SAME = 1e-9
"""Log-ratios below this are the rounding of equal numbers."""


def percent(log_ratio: float) -> float:
    """Relative difference in percent: log 0.959 -> -4.1."""
    return 100 * math.expm1(log_ratio)


def worded(log_ratio: float) -> str:
    """In words: 4.1% lower, 0.30% higher, under 0.01% higher, equal."""
    value = percent(log_ratio)
    if abs(log_ratio) < SAME:
        return "equal"
    return f"{_digits(abs(value))}% {'lower' if value < 0 else 'higher'}"


def _digits(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}" if value >= 0.01 else "under 0.01"


def sentence(c: Comparison) -> str:
    """The verdict of one pair of arms."""
    where = f" ({c.group})" if c.group else ""
    if not c.strata:
        why = f": {c.left_out[0]}" if c.left_out else ""
        return f"{c.a} and {c.b} were not compared{where}: they have no common stratum or range of L0{why}"
    if all(abs(pair.log_ratio) < SAME for stratum in c.strata for pair in stratum.pairs.values()):
        return f"{c.a} and {c.b} have the same FVU at equal L0{where}, in {_all(c)}; {_seeds(c)}{_texts(c)}"
    if c.decided:
        return _decided(c, where)
    if c.low != c.low:
        return _no_interval(c, where)
    text = (
        f"the data do not decide between {c.a} and {c.b} at equal L0{where}: FVU of {c.a} {worded(c.mean)} "
        f"(95% CI {worded(c.low)} to {worded(c.high)}), lower in {_strata(c)}; {_seeds(c)}{_texts(c)}"
    )
    if c.low * c.high > 0:
        return f"{text}; the difference is within the noise of the hold-out: it takes more texts, not more seeds"
    if c.needed is None:
        return f"{text}; more than {MAX_SEEDS} seeds would be needed: take them as equal"
    return f"{text}; about {max(c.needed, c.seeds + 1)} seeds would decide it, were the true difference this one"


def _decided(c: Comparison, where: str) -> str:
    mean, near, far = (_digits(-percent(x)) for x in (c.mean, c.high, c.low))
    text = (
        f"{c.a} reconstructs better than {c.b} at equal L0{where}: FVU {mean}% lower (95% CI {near} to {far}), "
        f"in {_strata(c)}; {_seeds(c)}{_texts(c)}"
    )
    return f"{text}; this pair alone, not after Holm's correction over all pairs of arms" if alone(c) else text


def alone(c: Comparison) -> bool:
    """Decided if it were the only pair of arms; with as many as there are, one such is to be expected by chance."""
    return c.decided and c.p_pairs > 0.05


def _no_interval(c: Comparison, where: str) -> str:
    """One seed, or seeds without any spread."""
    text = (
        f"the data do not decide between {c.a} and {c.b} at equal L0{where}: FVU of {c.a} {worded(c.mean)}, "
        f"lower in {_strata(c)}, but "
    )
    if c.seeds <= 1:
        text += f"one seed cannot tell a difference from the luck of a seed{_texts(c)}"
        return f"{text}; run at least {ENOUGH_SEEDS} seeds"
    return f"{text}its {c.seeds} seeds gave the same values: they did not vary the training{_texts(c)}"


def _strata(c: Comparison) -> str:
    return f"{c.lower} of {len(c.strata)} strata"


def _all(c: Comparison) -> str:
    return f"all {len(c.strata)} strata" if len(c.strata) > 1 else "the one stratum"


def _seeds(c: Comparison) -> str:
    return number_of(c.seeds, "seed")


def _texts(c: Comparison) -> str:
    """What else the reader must know: the other interval, interpolation, strata left out, an L0 that is not equal."""
    parts = []
    if c.texts and max(abs(c.text_low), abs(c.text_high)) < SAME:
        parts.append(f"equal over {c.texts} hold-out texts, too")
    elif c.texts:
        low, high = worded(c.text_low), worded(c.text_high)
        span = f"{high.split('%')[0]} to {low}" if c.text_high < 0 else f"{low} to {high}"
        parts.append(f"over {c.texts} hold-out texts {span}")
    if c.interpolated:
        parts.append(f"interpolated along L0 in {c.interpolated} of {len(c.strata)} strata")
    if c.left_out:
        parts.append(f"{len(c.left_out)} left out")
    gap = sum(s.l0_gap for s in c.strata) / len(c.strata)
    if abs(percent(gap)) >= 1:
        parts.append(f"measured L0 of {c.a} {worded(gap)}")
    return "".join(f"; {part}" for part in parts)
