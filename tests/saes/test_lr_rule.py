"""The factor of a type's default learning rate, by hand."""

from __future__ import annotations

import pytest

from saebench.saes.lr_rule import LrRule

RULE = LrRule(
    share=3.0,
    l0=1 / 2,
    width=1 / 4,
    width_by_l0=-1 / 4,
    steps=1 / 3,
    steps_at_8=1 / 3,
    steps_at_8_by_width=1 / 6,
    steps_at_128=1 / 6,
    batch_by_l0=1 / 4,
)


@pytest.mark.parametrize(
    ("l0", "d_in", "dict_size", "steps", "factor"),
    [
        (32, 384, 1536, 400, 3),
        (8, 384, 768, 200, 3),  # low L0, narrow, short: nothing changes
        (128, 384, 1536, 400, 3 * 2),  # 4^(1/2)
        (128, 768, 3072, 400, 3 * 2),  # whatever the d_in
        (32, 384, 24576, 400, 3 * 2),  # 16^(1/4)
        (32, 384, 1536, 3200, 3 / 2),  # 8^(-1/3)
        (64, 384, 24576, 400, 3 * 2),  # 2^(1/2) 16^(1/4 - 1/8)
        (128, 384, 24576, 400, 3 * 2),  # 4^(1/2) 16^(1/4 - 1/4)
        (32, 96, 6144, 400, 3),  # 16^(1/4 - 1/4): 12 L0 / d_in is 4
        (2048, 384, 24576, 400, 3 * 8),  # 64^(1/2): the power of the width falls no further
        (8, 384, 24576, 400, 3 * 4),  # 16^(1/4 + 1/4)
        (1, 768, 49152, 400, 3 * 4),  # and rises no further
        (128, 384, 1536, 3200, 3 * 2 / 8 ** (1 / 2)),  # 4^(1/2) 8^(-1/3 - 1/6)
        (8, 384, 1536, 3200, 3 / 4),  # 8^(-1/3 - 1/3)
        (16, 384, 1536, 3200, 3 / 8 ** (1 / 2)),  # half of that gain
        (2, 384, 1536, 3200, 3 / 4),  # and no more farther away
        (8, 384, 6144, 3200, 3 * 2 / 8 ** (1 / 2)),  # 4^(1/4 + 1/4) 8^(-1/3 - 1/3 + 1/6)
        (32, 384, 6144, 3200, 3 * 2 ** (1 / 2) / 2),  # at L0 32 the width says nothing about the steps
        (512, 384, 1536, 3200, 3 * 4 / 8 ** (1 / 2)),
        (64, 384, 24576, 25600, 3 * 2 / 64 ** (5 / 12)),  # all at once: 2^(1/2) 16^(1/4 - 1/8) 64^(-1/3 - 1/12)
    ],
)
def test_the_factor_is_a_product_of_powers(l0: float, d_in: int, dict_size: int, steps: float, factor: float) -> None:
    for batch_size in (256, 4096):
        assert RULE.factor(l0, d_in, dict_size, steps, batch_size) == pytest.approx(factor)


@pytest.mark.parametrize(
    ("l0", "batch_size", "factor"),
    [
        (32, 64, 3),  # a power of 0
        (8, 16, 3),  # and no less below
        (128, 64, 3 * 2 / 4 ** (1 / 4)),  # 4^(1/2) (1/4)^(1/4)
        (64, 16, 3 * 2 ** (1 / 2) / 16 ** (1 / 8)),  # 2^(1/2) (1/16)^(1/8)
        (512, 64, 3 * 4 / 4 ** (1 / 4)),  # no more than at 128
    ],
)
def test_a_small_batch_takes_more_the_higher_l0(l0: float, batch_size: int, factor: float) -> None:
    assert RULE.factor(l0, 384, 1536, 400, batch_size) == pytest.approx(factor)
