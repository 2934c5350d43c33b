"""The factor of a type's default learning rate, by hand."""

from __future__ import annotations

import pytest

from saebench.saes.lr_rule import LrRule

RULE = LrRule(share=3.0, l0=1 / 2, width=1 / 4, steps=1 / 3, l0_by_width=-1 / 2, l0_in_short_runs=1 / 4)


@pytest.mark.parametrize(
    ("l0", "d_in", "dict_size", "steps", "factor"),
    [
        (32, 384, 1536, 400, 3),
        (8, 384, 768, 200, 3),  # low L0, narrow, short: nothing changes
        (128, 384, 1536, 400, 3 * 2),  # 4^(1/2)
        (128, 768, 3072, 400, 3 * 2),  # whatever the d_in
        (32, 384, 24576, 400, 3 * 2),  # 16^(1/4)
        (32, 384, 1536, 3200, 3 / 2),  # 8^(-1/3)
        (128, 384, 24576, 400, 3 * 2 * 2 / 2),  # 4^(1/2) 16^(1/4) 4^(-1/2)
        (32, 96, 6144, 400, 3 * 2 / 2),  # 16^(1/4) 4^(-1/2): 12 L0 / d_in is 4
        (2048, 384, 24576, 400, 3 * 8 * 2 / 4),  # 64^(1/2) 16^(1/4) 16^(-1/2): no further than the width
        (8, 384, 24576, 400, 3 * 2 * 2),  # 16^(1/4) (1/4)^(-1/2)
        (1, 768, 49152, 400, 3 * 2 * 4),  # no further than 1/16
        (32, 384, 1536, 12.5, 3),  # 12.5 steps: nothing at an L0 of 32
        (512, 384, 1536, 200, 3 * 4),  # 200 steps are not short
        (512, 384, 1536, 12.5, 3 * 4 / 2),  # 16^(1/2) 16^(-1/4)
        (2048, 384, 1536, 12.5, 3 * 8 / 2),  # no further than the steps
    ],
)
def test_the_factor_is_a_product_of_powers(l0: float, d_in: int, dict_size: int, steps: float, factor: float) -> None:
    assert RULE.factor(l0, d_in, dict_size, steps) == pytest.approx(factor)
