"""A comparison of two arms: its strata, its pairs of runs, and the outcome."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from saebench.report.points import FINAL

FVU, L0 = f"{FINAL}fvu", f"{FINAL}l0"
LEVEL = 0.05
"""Level of a test, after Holm's correction."""
MARGIN = 0.005
"""Default of `eval.margin`: 0.5% of a metric that is compared by its ratio, 0.005 of a score."""
SAME = 1e-9
"""Differences below this are the rounding of equal numbers."""
Outcome = Literal["better", "worse", "equal", "small", "same", "undecided", "so far", "not compared"]
"""small: certain, but within the margin. same: equal to the last digit."""
EQUAL = ("equal", "small", "same")
"""Outcomes of arms whose difference is too small to matter."""
CONCLUSIVE = ("better", "worse", *EQUAL)
"""Outcomes other than undecided."""


@dataclass(frozen=True)
class Pair:
    """One seed in one stratum: the difference of losses a - b (of FVU: log(FVU_a / FVU_b)), log(L0_a / L0_b), and the
    runs it is a weighted sum of."""

    difference: float
    l0_gap: float
    weights: dict[str, float]


@dataclass(frozen=True)
class Stratum:
    """One sparsity and width, both arms."""

    level_name: str
    level: float
    dict_size: float
    base: str
    """The arm to which this stratum belongs."""
    counterpart: tuple[str, float] | None
    """Name and value of the other arm's sparsity parameter; None if it was interpolated."""
    l0: float
    """L0 at which the arms are compared: the mean over seeds of the arm that is not interpolated."""
    pairs: dict[int, Pair]
    """By seed."""
    search: float = 0.0
    """Difference that the search alone may have caused: it widens the interval on both sides."""
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_holm: float = math.nan
    text_low: float = math.nan
    text_high: float = math.nan

    @property
    def interpolated(self) -> bool:
        """Whether the other arm's FVU was interpolated along log L0."""
        return self.counterpart is None

    @property
    def l0_gap(self) -> float:
        """Mean log(L0_a / L0_b); 0 if interpolated."""
        return float(np.mean([pair.l0_gap for pair in self.pairs.values()]))


@dataclass(frozen=True)
class Comparison:
    """All strata of two arms in one metric, pooled. Differences are losses of a minus losses of b (see `loss_of`);
    those of FVU are log(FVU_a / FVU_b), and not above 0."""

    a: str
    b: str
    group: str
    strata: tuple[Stratum, ...]
    metric: str = "fvu"
    unfinished: str = ""
    """Progress of a sweep that has not ended (then nothing is decided); else empty."""
    edge: tuple[str, ...] = ()
    """Searched ranges at whose end a best point lies, with their arms."""
    points: int | None = None
    """Points that would locate the optimum of an arm that had too few."""
    search: float = 0.0
    """Mean of the strata's search errors; included in `low`, `high` and `p`."""
    margin: float = MARGIN
    """Differences below this do not matter."""
    left_out: tuple[str, ...] = ()
    """Strata that could not be compared, and why."""
    seeds: int = 0
    mean: float = math.nan
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    p_pairs: float = math.nan
    """p after Holm's correction over the family: all pairs of arms, in the primary metrics or in all the others."""
    sd: float = math.nan
    """Standard deviation, over seeds, of a seed's mean over strata."""
    text_low: float = math.nan
    text_high: float = math.nan
    texts: int = 0
    lower: int = 0
    """Strata in which `a` has the lower FVU."""
    sign_p: float = math.nan
    needed: int | None = field(default=None)
    """Seeds that would decide with 80% power, if this is the true difference."""

    @property
    def interpolated(self) -> int:
        return sum(s.interpolated for s in self.strata)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval over seeds and search, and the one over texts if it exists, exclude 0."""
        return self.low * self.high > 0 and not self.text_low * self.text_high < 0

    @property
    def same(self) -> bool:
        """Whether the arms are equal to the last digit."""
        return bool(self.strata) and all(abs(p.difference) < SAME for s in self.strata for p in s.pairs.values())

    @property
    def outcome(self) -> Outcome:
        """The outcome."""
        if self.unfinished:
            return "so far"
        if not self.strata:
            return "not compared"
        if self.same:
            return "same"
        if self.edge or not math.isfinite(self.search) or not math.isfinite(self.low):
            return "undecided"
        if -self.margin < self.low and self.high < self.margin:
            return "small" if self.excludes_zero and self.p_pairs <= LEVEL else "equal"
        if self.excludes_zero and self.p_pairs <= LEVEL:
            return "better" if self.mean < 0 else "worse"
        return "undecided"

    @property
    def decided(self) -> bool:
        """Whether one arm is certainly better, by enough to matter."""
        return self.outcome in ("better", "worse")

    @property
    def equal(self) -> bool:
        """Whether the arms certainly differ by too little to matter."""
        return self.outcome in EQUAL

    @property
    def winner(self) -> str:
        """The arm that is better; "" if none is."""
        return {"better": self.a, "worse": self.b}.get(self.outcome, "")

    def other(self, arm: str) -> str:
        """The arm that `arm` is compared with."""
        return self.b if self.a == arm else self.a

    def mean_of(self, arm: str) -> float:
        """Return the mean difference from `arm`'s side: below 0 if it is better."""
        return self.mean if self.a == arm else -self.mean


def arms_of(pairs: Iterable[Comparison]) -> list[str]:
    """Return every arm of these pairs once, in order."""
    return list(dict.fromkeys(arm for c in pairs for arm in (c.a, c.b)))
