"""Values of a distribution as shares of its range, and back."""

from __future__ import annotations

import math

from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution


def to_unit(distribution: BaseDistribution, value: float) -> float:
    """A value as a share of its range, 0 to 1; a whole number or a step as the middle of its share."""
    low, high, half = _ends(distribution)
    if _is_log(distribution):
        low, high, value = math.log(low - half), math.log(high + half), math.log(value)
        return (value - low) / (high - low)
    return (value - low + half) / (high - low + 2 * half)


def from_unit(distribution: BaseDistribution, share: float) -> float | int:
    """The value that `share` of the range stands for."""
    low, high, half = _ends(distribution)
    if _is_log(distribution):
        bottom, top = math.log(low - half), math.log(high + half)
        value = math.exp(bottom + share * (top - bottom))
    else:
        value = low - half + share * (high - low + 2 * half)
    if half:
        value = low + round((value - low) / (2 * half)) * 2 * half
    value = min(max(value, low), high)
    return round(value) if isinstance(distribution, IntDistribution) else float(value)


def _ends(distribution: BaseDistribution) -> tuple[float, float, float]:
    """(low, high, half of the step or 0)"""
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high, (distribution.step or 0) / 2


def _is_log(distribution: BaseDistribution) -> bool:
    return bool(getattr(distribution, "log", False))
