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
BATCH = 256
"""Batch size below which a rate may fall by more than the square root of the batch."""


class LrRule(NamedTuple):
    """The share of LR or L1_LR that a type takes, and its answer to L0, width, length of a run and batch size:
    powers of L0 / 32, dict_size / (4 d_in), steps / STEPS and batch_size / BATCH (experiments/recipe)."""

    share: float = 1.0
    l0: float = 0.0
    """Of L0 / 32 above 1."""
    width: float = 0.0
    """Of dict_size / (4 d_in) above 1, where L0 is d_in / 12."""
    width_by_l0: float = 0.0
    """What `width` gains for each factor of 4 between L0 and d_in / 12: at most one, up or down."""
    steps: float = 0.0
    """Of STEPS / steps below 1, where L0 is 32."""
    steps_at_8: float = 0.0
    """What `steps` gains where L0 is 8 or less; in between, in proportion to ln L0."""
    steps_at_8_by_width: float = 0.0
    """What `steps_at_8` loses for each factor of 4 in dict_size / (4 d_in) above 1."""
    steps_at_128: float = 0.0
    """What `steps` gains where L0 is 128 or more; in between, in proportion to ln L0."""
    batch_by_l0: float = 0.0
    """Of batch_size / BATCH below 1, for each factor of 4 in L0 / 32 above 1: at most one."""

    def factor(self, l0: float, d_in: int, dict_size: int, steps: float, batch_size: int) -> float:
        """Return the factor on LR or L1_LR for an L0, two widths, and the optimiser's steps and batch size."""
        fours, of_d_in = _fours(l0 / 32), _fours(12 * l0 / d_in)
        wide, long = max(1.0, dict_size / (4 * d_in)), max(1.0, steps / STEPS)
        factor = self.share * math.pow(max(1.0, l0 / 32), self.l0)
        factor *= math.pow(wide, self.width + of_d_in * self.width_by_l0)
        low = self.steps_at_8 - math.log(wide, 4) * self.steps_at_8_by_width
        factor /= math.pow(long, self.steps + max(0.0, -fours) * low + max(0.0, fours) * self.steps_at_128)
        return factor * math.pow(min(1.0, batch_size / BATCH), max(0.0, fours) * self.batch_by_l0)


def _fours(ratio: float) -> float:
    """Return the factors of 4 in a ratio, at most one up and one down."""
    return min(max(math.log(ratio, 4), -1.0), 1.0)
