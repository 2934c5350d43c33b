"""Matching of dictionaries against all permutations, and on dictionaries whose matching is known."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from saebench.report.matching import match


def unit(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) / math.dist(a, a * 0) / math.dist(b, b * 0)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_best_of_all_permutations(seed: int) -> None:
    a, b = unit(5, 3, seed), unit(5, 3, seed + 100)
    best = max(
        ([cosine(a[i], b[j]) for i, j in enumerate(order)] for order in permutations(range(5))),
        key=lambda row: sum(row),
    )
    found = match(a, b)
    assert found.cosine == pytest.approx(sum(best) / 5, abs=1e-6)
    assert found.same == sum(c > 0.7 for c in best) / 5
    assert (found.latents, found.rows) == (5, 5)


@pytest.mark.parametrize("seed", range(5))
def test_dictionaries_of_different_sizes_leave_some_out(seed: int) -> None:
    a, b = unit(3, 4, seed), unit(5, 4, seed + 100)
    best = max(sum(cosine(a[i], b[j]) for i, j in enumerate(order)) / 3 for order in permutations(range(5), 3))
    assert match(a, b).cosine == pytest.approx(best, abs=1e-6)
    assert match(a, b) == match(b, a)
    assert match(a, b).latents == 3


def test_the_order_and_length_of_rows_do_not_matter() -> None:
    a = unit(40, 8)
    b = a[np.random.default_rng(1).permutation(40)] * np.linspace(0.1, 9, 40, dtype=np.float32)[:, None]
    found = match(a, b)
    assert found.cosine == pytest.approx(1, abs=1e-12)
    assert found.same == 1


def test_the_sign_does() -> None:
    """Codes are not negative: a latent that writes -d says another thing than one that writes d."""
    a = np.eye(6, dtype=np.float32)
    assert match(a, -a).cosine == 0, "everything else is orthogonal, which is better than opposite"
    assert match(a[:1], -a[:1]).cosine == -1


def test_half_a_planted_dictionary_is_half_the_share() -> None:
    a = unit(60, 200)
    b = unit(60, 200, seed=1)
    b[:30] = a[30:] + 0.01 * unit(30, 200, seed=2)
    found = match(a, b)
    assert found.same == 0.5
    assert found.cosine == pytest.approx(0.5 * 1 + 0.5 * 0.15, abs=0.05)


def test_greedy_would_be_another_number() -> None:
    """a0 is nearest to b0, but a1 has no other: 0.9 + 0.1 greedily, 0.4 + 0.8 in all."""
    b = np.eye(3, dtype=np.float64)[:2]
    a = np.array([[0.9, 0.4, 0.03**0.5], [0.8, 0.1, 0.35**0.5]])
    cosines = a @ b.T
    assert cosines.max() == cosines[0, 0], "a greedy matching takes this pair first, whatever it does about ties"
    assert match(a, b).cosine == pytest.approx((0.4 + 0.8) / 2)
    assert match(a[::-1], b).cosine == pytest.approx((0.4 + 0.8) / 2)


def test_a_large_matching_is_sampled_says_so_and_is_not_below_the_whole() -> None:
    a, b = unit(300, 16), unit(300, 16, seed=1)
    b[:150] = a[150:]
    whole, sampled = match(a, b), match(a, b, cells=300 * 100)
    assert (whole.rows, sampled.rows, sampled.latents) == (300, 100, 300)
    assert sampled == match(a, b, cells=300 * 100), "the same rows are drawn each time"
    means = [match(a[np.random.default_rng(i).permutation(300)], b, cells=300 * 100).cosine for i in range(40)]
    assert whole.cosine < np.mean(means) < whole.cosine + 0.1


def test_odd_dictionaries() -> None:
    none = match(unit(0, 4), unit(5, 4))
    assert math.isnan(none.cosine)
    assert none.latents == 0
    assert match(np.zeros((2, 4)), unit(2, 4)).cosine == 0, "a latent that writes nothing is like no other"
    with pytest.raises(ValueError, match="one width"):
        match(unit(3, 4), unit(3, 5))
