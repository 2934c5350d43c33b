"""What the default learning rate of a type depends on, measured in experiments/recipe (FINDINGS.md)."""

from __future__ import annotations

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
STEPS = 400
"""Steps above which rates fall: a penalty closes latents for good, the more of them the higher the rate and the longer
the run (200 to 10,000 steps)."""


class LrRule(NamedTuple):
    """Share of LR or L1_LR that a type takes, and powers by which its rate differs outside the range they were measured
    in."""

    share: float = 1.0
    l0: float = 1 / 8
    """Of L0 / (d_in / 12), where that is above 1."""
    width: float = 0.0
    """Of dict_size / (4 d_in), where that is above 1."""
    steps: float = 0.0
    """Of STEPS / steps, where that is below 1."""
