"""What the default learning rate of a type depends on, measured in experiments/recipe (FINDINGS.md)."""

from __future__ import annotations

import math
from typing import NamedTuple

LR = 0.0176
"""Peak learning rate, in units of sqrt(batch_size / dict_size): the same at d_in 50 and 384."""
L1_LR = 0.23
"""The same for types with an L1 penalty, in units of sqrt(batch_size / (dict_size d_in)) (dict_size / L0)^(1/4):
measured at d_in 50 to 384, L0 8 to 128. A step of Adam turns a unit row by lr sqrt(d_in), and moves a bias by lr where
pre-activations spread over 1 / sqrt(d_in)."""
EXAMPLES = 18_000
"""Distinct training rows above which every rate falls with their cube root: with few rows, the noise of a high rate
keeps an SAE from memorising them (18,000 to 113,000 rows)."""
WIDE_INPUT = 384
"""d_in above which the rates of types without an L1 penalty fall with its cube root (measured at 768)."""
STEPS = 400
"""Steps above which most rates fall."""


class LrRule(NamedTuple):
    """The share of LR or L1_LR that a type takes, and how its rate answers to L0, width and length of a run: powers of
    L0 / 32, 12 L0 / d_in, dict_size / (4 d_in) and steps / STEPS (experiments/recipe)."""

    share: float = 1.0
    l0: float = 0.0
    """Of L0 / 32 above 1."""
    width: float = 0.0
    """Of dict_size / (4 d_in) above 1."""
    steps: float = 0.0
    """Of STEPS / steps below 1."""
    l0_by_width: float = 0.0
    """Of 12 L0 / d_in, above or below 1 but no further from 1 than the width is."""
    l0_in_short_runs: float = 0.0
    """Of 32 / L0 below 1, but no further from 1 than steps / (STEPS / 2) below 1 is."""

    def factor(self, l0: float, d_in: int, dict_size: int, steps: float) -> float:
        """Return the factor on LR or L1_LR for an L0, two widths and a number of steps of the optimiser."""
        dense, wide = max(1.0, l0 / 32), max(1.0, dict_size / (4 * d_in))
        long, short = max(1.0, steps / STEPS), max(1.0, STEPS / (2 * steps))
        found = self.share * math.pow(dense, self.l0) * math.pow(wide, self.width) / math.pow(long, self.steps)
        found *= math.pow(min(max(12 * l0 / d_in, 1 / wide), wide), self.l0_by_width)
        return found / math.pow(min(dense, short), self.l0_in_short_runs)
