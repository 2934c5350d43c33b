"""What latents have to do with each other: against numpy, and whatever their numbers are."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from saebench.latents.codes import Codes
from saebench.latents.facts import ByLatent, decile_of, facts_of, sample_by_density
from saebench.latents.families import families
from saebench.latents.neighbours import coactivation, found_again, nearest_by_cosine, plane


def blocks(texts: int = 900, seed: int = 0) -> NDArray[np.float32]:
    """Three groups of four latents that fire on the same texts, more or less, and one latent that fires alone."""
    draw = np.random.default_rng(seed)
    topic = draw.integers(0, 4, texts)
    on = [(topic == g) & (draw.random(texts) < 0.7) | (draw.random(texts) < 0.02) for g in range(3) for _ in range(4)]
    dense = np.stack([*on, draw.random(texts) < 0.1]).T * draw.random((texts, 13))
    return dense.astype(np.float32)


def test_coactivation_is_the_correlation_of_firing() -> None:
    dense = blocks()
    expected = np.corrcoef((dense != 0).T.astype(float))
    near = coactivation(Codes.of(dense), np.arange(13), k=12)
    for i in range(13):
        there = near.index[i] >= 0
        assert near.value[i][there] == pytest.approx(expected[i][near.index[i][there]], abs=1e-6)
        assert set(near.index[i][there]) == {j for j in range(13) if j != i and expected[i, j] > 1e-9}
        assert (np.diff(near.value[i][there]) <= 0).all()


def test_planted_families_are_found_whatever_the_numbers_of_the_latents() -> None:
    dense, draw = blocks(), np.random.default_rng(3)
    found, modularity = families(coactivation(Codes.of(dense), np.arange(13)))
    assert [len(set(found[g * 4 : g * 4 + 4])) for g in range(3)] == [1, 1, 1]
    assert len(set(found[:12])) == 3
    assert 0.55 < modularity <= 2 / 3 + 1e-9  # three equal families with nothing between them: 1 - 1/3
    for _ in range(5):
        order = draw.permutation(13)
        again, same = families(coactivation(Codes.of(dense[:, order]), np.arange(13)))
        assert same == pytest.approx(modularity)
        sets = {frozenset(order[again == f].tolist()) for f in set(again.tolist()) - {-1}}
        assert sets == {frozenset(np.flatnonzero(found == f).tolist()) for f in set(found.tolist()) - {-1}}


def test_the_modularity_is_that_of_the_definition() -> None:
    near = coactivation(Codes.of(blocks(seed=4)), np.arange(13), k=3)
    found, modularity = families(near)
    weight = np.zeros((13, 13))
    for i in range(13):
        for j, v in zip(near.index[i], near.value[i], strict=True):
            if j >= 0:
                weight[i, j] = weight[j, i] = v
    total, degree = weight.sum(), weight.sum(1)
    same = (found[:, None] == found[None]) & (found[:, None] >= 0) | np.eye(13, dtype=bool)
    expected = ((weight - np.outer(degree, degree) / total) * same).sum() / total
    assert modularity == pytest.approx(expected)


def test_latents_that_never_meet_have_no_family() -> None:
    found, modularity = families(coactivation(Codes.of(np.eye(6, dtype=np.float32)), np.arange(6)))
    assert (found.tolist(), modularity) == ([-1] * 6, 0.0)


def test_nearest_latents_are_those_of_a_full_sort_and_never_the_latent_itself() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    rows[7] = 3 * rows[5]  # a twin, of another length
    near = nearest_by_cosine(rows, k=4)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosine = unit @ unit.T - 9 * np.eye(40)
    assert near.value == pytest.approx(np.sort(cosine, axis=1)[:, ::-1][:, :4], abs=1e-6)
    assert near.index[7][0] == 5
    assert near.value[7][0] == pytest.approx(1)


def test_one_latent_has_no_neighbour() -> None:
    assert nearest_by_cosine(np.ones((1, 3), np.float32)).index.shape == (1, 0)
    assert plane(np.ones((1, 3), np.float32)).tolist() == [[0, 0]]


def test_the_share_of_seeds_that_found_a_latent() -> None:
    axes = np.eye(4, dtype=np.float32)
    close = np.array([[1, 0.9, 0, 0]], np.float32)  # cosine 0.743 to the first, 0.669 to the second
    assert found_again(axes, [axes[:2], close]).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert np.isnan(found_again(axes, [])).all()
    assert found_again(axes, [axes[:0]]).tolist() == [0, 0, 0, 0]


def test_the_map_is_the_same_every_time_and_holds_the_principal_components() -> None:
    rows = np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32) * [5, 3, 1, 1, 1]
    placed = plane(rows.astype(np.float32))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    assert np.abs(placed) == pytest.approx(np.abs(u[:, :2] * s[:2]), abs=1e-5)
    assert np.array_equal(placed, plane(rows.astype(np.float32)))


# --- facts -----------------------------------------------------------------------------------------------------------


def test_density_mean_and_greatest_activation_by_hand() -> None:
    facts = facts_of(Codes.of(np.array([[1, 0, 0], [3, -4, 0], [0, 2, 0], [0, 0, 0]], np.float32)))
    assert facts.firing.tolist() == [2, 2, 0]
    assert facts.density.tolist() == [0.5, 0.5, 0]
    assert facts.mean[:2].tolist() == [2, -1]
    assert facts.largest[:2].tolist() == [3, -4]
    assert np.isnan([facts.mean[2], facts.largest[2]]).all()
    assert facts.live.tolist() == [0, 1]


def test_top_texts_and_deciles() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1, 26)).astype(np.float32)
    by_latent = ByLatent(Codes.of(np.concatenate([values, np.zeros(10)])[:, None]))
    top = by_latent.top(0, 3)
    assert [e.activation for e in top] == [25, 24, 23]
    assert [values[e.row] for e in top] == [25, 24, 23]
    tenths = by_latent.deciles(0)
    assert [some[0].decile for some in tenths] == list(range(1, 11))
    assert [some[0].activation for some in tenths] == [24, 21, 18, 15, 12, 10, 8, 6, 4, 2]
    """25 texts in tenths of 3, 3, 3, 3, 3, 2, 2, 2, 2, 2; of two, the first."""


def test_fewer_texts_than_deciles() -> None:
    by_latent = ByLatent(Codes.of(np.array([[3], [1], [2], [0]], np.float32)))
    assert [[e.activation for e in some] for some in by_latent.deciles(0)] == [[3], [2], [1]]
    assert {e.decile for some in by_latent.deciles(0) for e in some} == {0}
    assert decile_of(3).tolist() == [0, 0, 0]
    assert ByLatent(Codes.of(np.zeros((3, 1), np.float32))).deciles(0) == []


def test_the_sample_spans_densities_and_has_one_size() -> None:
    draw = np.random.default_rng(0)
    rates = np.geomspace(0.005, 0.5, 200)
    facts = facts_of(Codes.of((draw.random((2000, 200)) < rates).astype(np.float32)))
    some = sample_by_density(facts, 20, fewest=5)
    assert len(some) == len(set(some)) == 20
    usable = np.flatnonzero(facts.firing >= 5)
    places = np.searchsorted(np.sort(facts.firing[usable]), facts.firing[list(some)]) / len(usable)
    assert np.sort(places) == pytest.approx((np.arange(20) + 0.5) / 20, abs=0.05)
    assert list(sample_by_density(facts, 10_000, fewest=5)) == usable.tolist()
