"""The factor of a type's default learning rate, by hand."""

from __future__ import annotations

import pytest

from saebench.saes.lr_rule import LrRule

RULE = LrRule(share=3.0, l0=1 / 2, width=1 / 4, steps=1 / 3, l0_by_width=-1 / 2, l0_in_short_runs=1 / 4)


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
        (1, 1, 1 / 32, 3),  # 12.5 steps: nothing at a twelfth of d_in
        (16, 1, 1 / 2, 3 * 4),  # 200 steps are not short
        (16, 1, 1 / 32, 3 * 4 / 2),  # 16^(1/2) 16^(-1/4)
        (64, 1, 1 / 32, 3 * 8 / 2),  # no further than the steps
        (4, 16, 64, 3 * 2 * 2 / 2 / 4),
    ],
)
def test_the_factor_is_a_product_of_powers(l0: float, width: float, steps: float, factor: float) -> None:
    assert RULE.factor(l0, width, steps) == pytest.approx(factor)
