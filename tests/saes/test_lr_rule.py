"""The factor of a type's default learning rate, by hand."""

from __future__ import annotations

import pytest

from saebench.saes.lr_rule import LrRule

RULE = LrRule(
    share=3.0, l0=1 / 2, width=1 / 4, steps=1 / 3, l0_by_width=-1 / 2, dense_by_steps=1 / 3, sparse_by_steps=1 / 6
)


@pytest.mark.parametrize(
    ("l0", "width", "steps", "factor"),
    [
        (1, 1, 1, 3),
        (1 / 4, 1 / 2, 1 / 2, 3),  # low L0, narrow, short: nothing changes
        (4, 1, 1, 3 * 2),  # 4^(1/2)
        (1, 16, 1, 3 * 2),  # 16^(1/4)
        (1, 1, 8, 3 / 2),  # 8^(-1/3)
        (4, 16, 1, 3 * 2 * 2 / 2),  # 4^(1/2) 16^(1/4) 4^(-1/2)
        (64, 16, 1, 3 * 8 * 2 / 4),  # 64^(1/2) 16^(1/4) 16^(-1/2): no further than the width
        (1 / 4, 16, 1, 3 * 2 * 2),  # 16^(1/4) (1/4)^(-1/2)
        (1 / 64, 16, 1, 3 * 2 * 4),  # no further than 1/16
        (8, 1, 64, 3 * 8**0.5 / 4 * 2),  # 8^(1/2) 64^(-1/3) 8^(1/3)
        (64, 1, 8, 3 * 8 / 2 * 2),  # no further than the steps
        (1 / 8, 1, 64, 3 / 4 / 8 ** (1 / 6)),
        (1 / 64, 1, 8, 3 / 2 / 8 ** (1 / 6)),  # no further than the steps
        (1 / 8, 1 / 8, 64, 3 / 4),  # a narrow dictionary of which 1/48 fires
        (4, 16, 64, 3 * 2 * 2 / 4 / 2 / 4 ** (1 / 6)),  # density 1/4
    ],
)
def test_the_factor_is_a_product_of_powers(l0: float, width: float, steps: float, factor: float) -> None:
    assert RULE.factor(l0, width, steps) == pytest.approx(factor)


def test_in_short_runs_the_rate_falls_where_l0_is_high() -> None:
    """1/8 of 400 steps is a quarter of 200: half the rate if four times 1/48 of the latents fire or more."""
    plain = LrRule()
    assert [plain.factor(l0, 1, 1 / 8) for l0 in (1 / 4, 1, 4, 16)] == pytest.approx([1, 1, 1 / 2, 1 / 2])
    assert [plain.factor(9 / 4, width, 1 / 8) for width in (1, 4)] == pytest.approx([2 / 3, 1])
