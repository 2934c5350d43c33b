"""The statistics on data whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from saebench.report import statistics

SIMULATIONS = 8000


def simulated(seeds: int, strata: int, *, mean: float, missing: float = 0.0, shared: float = 0.02, own: float = 0.03):
    """Log-ratios (simulations, seeds, strata): a fixed effect per stratum around `mean`, a draw per seed, a draw per
    cell, and cells that are not there."""
    rng = np.random.default_rng(seeds * 100 + strata)
    effects = np.linspace(-0.03, 0.03, strata) if strata > 1 else 0.0
    values = mean + effects + rng.normal(0, shared, (SIMULATIONS, seeds, 1))
    values = values + rng.normal(0, own, (SIMULATIONS, seeds, strata))
    return np.where(rng.random(values.shape) < missing, np.nan, values)


@pytest.mark.parametrize(("seeds", "strata"), [(2, 6), (3, 1), (3, 6), (5, 6), (10, 4)])
def test_the_pooled_interval_covers_the_truth_95_times_in_100(seeds: int, strata: int) -> None:
    found = statistics.over_strata(simulated(seeds, strata, mean=-0.04))
    assert 0.93 <= np.mean((found.low <= -0.04) & (found.high >= -0.04)) <= 0.97


@pytest.mark.parametrize("seeds", [3, 5])
def test_the_pooled_interval_covers_the_truth_when_every_seventh_cell_is_missing(seeds: int) -> None:
    # one effect for all strata: which strata have two seeds varies, and with it what the pooled mean is a mean of
    rng = np.random.default_rng(seeds)
    values = -0.04 + rng.normal(0, 0.02, (SIMULATIONS, seeds, 1)) + rng.normal(0, 0.03, (SIMULATIONS, seeds, 6))
    values[rng.random(values.shape) < 1 / 7] = np.nan
    found = statistics.over_strata(values)
    known = np.isfinite(found.low)
    assert known.mean() > 0.99
    assert 0.93 <= np.mean((found.low <= -0.04)[known] & (found.high >= -0.04)[known]) <= 0.97


def test_the_interval_of_one_stratum_covers_the_truth_95_times_in_100() -> None:
    found = statistics.over_seeds(simulated(4, 1, mean=0.01)[..., 0])
    assert 0.93 <= np.mean((found.low <= 0.01) & (found.high >= 0.01)) <= 0.97


def test_treating_cells_as_independent_would_not_cover() -> None:
    """Why seeds are the unit: a seed's luck is shared by its strata."""
    values = simulated(3, 6, mean=0.0, shared=0.03, own=0.01)
    naive = statistics.over_seeds((values - np.linspace(-0.03, 0.03, 6)).reshape(SIMULATIONS, -1))
    assert np.mean((naive.low <= 0) & (naive.high >= 0)) < 0.8


def test_with_every_cell_there_it_is_the_t_interval_over_the_seeds_means() -> None:
    values = simulated(5, 3, mean=-0.1)[0]
    found = statistics.over_strata(values)
    by_seed = values.mean(1)
    expected = stats.ttest_1samp(by_seed, 0)
    low, high = expected.confidence_interval()
    assert (float(found.mean), float(found.low), float(found.high)) == pytest.approx((by_seed.mean(), low, high))
    assert float(found.p) == pytest.approx(expected.pvalue)
    assert float(found.sd) == pytest.approx(by_seed.std(ddof=1))


def test_a_missing_cell_does_not_bring_the_strata_s_differences_into_the_error() -> None:
    """Strata 0.1 apart, seeds without any luck: the mean is exactly that of the strata, however many cells miss."""
    values = np.tile([0.0, 0.1], (3, 1)) + np.array([[0.001], [0.0], [-0.001]])
    values[0, 1] = np.nan
    found = statistics.over_strata(values)
    assert float(found.mean) == pytest.approx(0.05, abs=1e-3)
    assert float(found.high - found.low) < 0.02


def test_after_holm_a_null_sweep_has_a_significant_stratum_at_most_5_times_in_100() -> None:
    values = simulated(4, 6, mean=0.0, shared=0.01) - np.linspace(-0.03, 0.03, 6)
    p = statistics.over_seeds(np.swapaxes(values, 1, 2)).p
    assert np.mean((p < 0.05).any(-1)) > 0.15  # without it, far more
    assert np.mean((statistics.holm(p) < 0.05).any(-1)) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / SIMULATIONS)


def test_holm_by_hand() -> None:
    # sorted .01 .03 .04 -> times 3, 2, 1 -> .03 .06 .04 -> running maximum .03 .06 .06
    assert statistics.holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    with_gap = statistics.holm([0.01, np.nan, 0.04])  # two tests: .02 .04
    assert with_gap[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert np.isnan(with_gap[1])
    assert statistics.holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert statistics.holm([]).size == 0


def test_the_sign_test_by_hand() -> None:
    assert statistics.sign_test([-1, -2, -0.1, -3, -1, -5]) == (6, 6, pytest.approx(2 / 64))
    assert statistics.sign_test([-1, 1, 0, np.nan]) == (1, 2, pytest.approx(1.0))
    assert np.isnan(statistics.sign_test([0.0])[2])


@pytest.mark.parametrize(("difference", "sd"), [(0.02, 0.02), (0.01, 0.02), (0.05, 0.02)])
def test_the_seeds_it_asks_for_decide_4_times_in_5_and_one_fewer_do_not(difference: float, sd: float) -> None:
    needed = statistics.seeds_needed(difference, sd)
    assert needed is not None

    def power(seeds: int) -> float:
        values = np.random.default_rng(seeds).normal(difference, sd, (20_000, seeds))
        found = statistics.over_seeds(values)
        return float(np.mean(found.low * found.high > 0))

    assert power(needed) >= 0.79
    assert needed == 2 or power(needed - 1) < 0.81


def test_no_number_of_seeds_decides_what_does_not_differ() -> None:
    assert statistics.seeds_needed(0.0, 0.1) is None
    assert statistics.seeds_needed(1e-6, 0.1) is None
    assert statistics.seeds_needed(0.1, 0.0) is None
    assert statistics.seeds_needed(float("nan"), 0.1) is None
    assert statistics.seeds_needed(10.0, 0.001) == 2


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([[-0.1, -0.2]], -0.15),  # one seed
        ([[-0.1]], -0.1),  # one seed, one stratum
        ([[-0.1, -0.2], [-0.1, -0.2]], -0.15),  # seeds that do not differ
        ([[-0.1, np.nan], [np.nan, -0.3]], -0.2),  # no stratum with two seeds
        ([[np.nan, np.nan], [np.nan, np.nan]], np.nan),
    ],
)
def test_where_seeds_tell_nothing_there_is_a_mean_but_no_interval(values: list, mean: float) -> None:
    found = statistics.over_strata(values)
    assert float(found.mean) == pytest.approx(mean, nan_ok=True)
    assert np.isnan([found.low, found.high, found.p]).all()


def test_a_stratum_with_one_seed_does_not_count_beside_strata_with_two() -> None:
    found = statistics.over_strata([[-0.1, 5.0], [-0.2, np.nan]])
    assert float(found.mean) == pytest.approx(-0.15)
    assert np.isfinite(found.low)


def test_the_bootstrap_over_texts_covers_the_truth() -> None:
    rng, covered, rounds = np.random.default_rng(0), 0, 250
    for i in range(rounds):
        hard = rng.gamma(2, 1, 300)  # the same texts are hard for both arms
        errors = np.stack([hard * rng.gamma(9, 0.9 / 9, 300), hard * rng.gamma(9, 1 / 9, 300)])
        found = statistics.over_texts(errors, [1, -1], draws=300, seed=i)
        covered += bool(found.low <= np.log(0.9) <= found.high)
    assert 0.91 <= covered / rounds <= 0.98


def test_the_bootstrap_is_paired_over_texts() -> None:
    hard = np.random.default_rng(0).gamma(0.3, 1, 5000)
    found = statistics.over_texts(np.stack([0.95 * hard, hard]), [1, -1])
    assert float(found.mean) == pytest.approx(np.log(0.95))
    assert float(found.high - found.low) < 1e-9  # whichever texts are drawn, the ratio is the same


def test_dealing_texts_into_groups_does_not_change_the_interval() -> None:
    rng = np.random.default_rng(1)
    errors = rng.gamma(2, 1, (2, 4_000))
    fine, coarse = (statistics.over_texts(errors, [1, -1], groups=g, draws=2000) for g in (4_000, 400))
    assert float(coarse.high - coarse.low) == pytest.approx(float(fine.high - fine.low), rel=0.12)


def test_several_contrasts_share_the_draws() -> None:
    errors = np.random.default_rng(2).gamma(2, 1, (3, 400))
    both = statistics.over_texts(errors, [[1, -1, 0], [0, 1, -1]])
    alone = statistics.over_texts(errors, [0, 1, -1])
    assert (both.low[1], both.high[1]) == (pytest.approx(float(alone.low)), pytest.approx(float(alone.high)))
