"""Where to measure next, which point to choose, and how far it may be from the best one: on known curves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from saebench import response
from saebench.response import Axis, Measured, choose, propose, regret

LR = Axis("lr", 1e-3, 3e-2, log=True)


def measured(shares: list[float], best: float, curvature: float = 0.8) -> list[Measured]:
    return [Measured((x,), curvature * (x - best) ** 2) for x in shares]


def test_shares_of_a_range_and_back() -> None:
    assert LR.share(1e-3) == 0
    assert LR.share(3e-2) == pytest.approx(1)
    assert LR.value(0.5) == pytest.approx(math.sqrt(1e-3 * 3e-2))
    assert Axis("batch_size", 64, 256, integer=True).value(0.4) == 141  # 64 + 0.4 * 192 = 140.8
    assert Axis("decay", 0.1, 0.5, step=0.1).value(0.4) == pytest.approx(0.3)  # 0.26 lies nearest to the third step


def test_losses_are_logarithms_of_ratios_and_smaller_is_better() -> None:
    assert response.loss(0.5, ratio=True, maximize=False) == math.log(0.5)
    assert response.loss(0.9, ratio=False, maximize=True) == -0.9
    assert math.isnan(response.loss(0.0, ratio=True, maximize=False))


def test_the_vertex_of_a_parabola_is_proposed_and_then_nothing() -> None:
    """Three points on 0.8 (x - 0.4)^2: the vertex is 0.4, exactly."""
    points = measured([0.1, 0.5, 0.9], 0.4)
    (first, *_) = propose(points, 1, 4)
    assert first == (pytest.approx(0.4),)
    points += measured([0.4, 0.25, 0.55], 0.4)
    assert propose(points, 1, 4) == []


def test_no_more_is_proposed_than_there_is_room_for() -> None:
    assert len(propose(measured([0.1, 0.5, 0.9], 0.4), 1, 1)) == 1
    assert propose([], 1, 4) == []
    assert propose([Measured((0.5,), math.nan)], 1, 4) == []


def test_where_the_outermost_point_is_best_the_end_of_the_range_is_measured() -> None:
    points = measured([0.1, 0.4, 0.8], 1.2)
    assert (1.0,) in propose(points, 1, 4)
    points += measured([1.0], 1.2)
    choice = choose(points, [LR])
    assert choice.edge == ("lr",)
    assert points[choice.index].at == (1.0,)


@pytest.mark.parametrize(("end", "edge"), [(0.02, ()), (0.003, ("lr",))])
def test_a_best_point_near_the_end_is_inside_where_the_end_is_worse_for_certain(
    end: float, edge: tuple[str, ...]
) -> None:
    """0.96 of the range is the best; the end itself is 2% worse (a cliff: inside), or 0.3% (noise: at the edge)."""
    points = [*measured([0.3, 0.6, 0.8, 0.9], 0.97), Measured((0.96,), 0.0), Measured((1.0,), end)]
    choice = choose(points, [LR])
    assert choice.edge == edge


def test_the_best_point_at_the_very_end_is_at_the_edge_whatever_lies_before_it() -> None:
    assert choose(measured([0.3, 0.6, 0.9, 1.0], 1.3), [LR]).edge == ("lr",)
    assert choose(measured([0.0, 0.1, 0.5, 0.9], -0.2), [LR]).edge == ("lr",)


def test_an_end_that_is_worse_at_another_setting_of_the_second_range_brackets_nothing() -> None:
    axes = [LR, Axis("decay", 0.0, 1.0)]
    points = [Measured((0.96, 0.5), 0.0), Measured((1.0, 0.1), 0.1), Measured((0.5, 0.5), 0.1)]
    assert choose(points, axes).edge == ("lr",)
    assert choose([*points, Measured((1.0, 0.5), 0.1)], axes).edge == ()


def test_a_cliff_above_the_optimum_does_not_pull_the_chosen_point_down() -> None:
    """Three times as steep above 0.5 as below, without noise: a symmetric parabola through 0.2, 0.35, 0.45, 0.5,
    0.6 and 0.7 has its vertex below 0.46, and 0.45 would be chosen."""
    shares = [0.2, 0.35, 0.45, 0.5, 0.6, 0.7]
    points = [Measured((x,), (0.8 if x < 0.5 else 2.4) * (x - 0.5) ** 2) for x in shares]
    choice = choose(points, [LR])
    assert points[choice.index].at == (0.5,)
    assert choice.gap < 0.002


def test_the_chosen_point_is_the_one_with_the_least_fitted_loss_not_the_luckiest() -> None:
    """A parabola around 0.5; the point at 0.5 was unlucky by 0.1%, the one at 0.47 lucky by 0.1%."""
    points = measured([0.2, 0.35, 0.47, 0.5, 0.65, 0.8], 0.5)
    points[2], points[3] = Measured((0.47,), points[2].loss - 0.001), Measured((0.5,), points[3].loss + 0.001)
    assert min(points, key=lambda p: p.loss).at == (0.47,)
    assert points[choose(points, [LR]).index].at == (0.5,)


def test_the_gap_is_the_fitted_loss_of_the_chosen_point_and_the_error_of_the_optimum() -> None:
    """Nearest to the optimum at 0.45 lies 0.5: 0.8 * 0.05^2 = 0.002 above it; the error of the vertex comes on top."""
    choice = choose(measured([0.2, 0.35, 0.5, 0.65, 0.8], 0.45), [LR])
    assert 0.002 <= choice.gap < 0.0025
    assert choice.edge == ()
    assert choice.needed is None


def test_too_few_points_are_said_with_how_many_would_do() -> None:
    """Two points make no parabola. One per factor of 1.5 on a factor of 30: ln 30 / ln 1.5 = 8.4."""
    choice = choose(measured([0.3, 0.7], 0.5), [LR])
    assert math.isinf(choice.gap)
    assert choice.needed == 9


def test_two_ranges_are_fitted_together() -> None:
    rng = np.random.default_rng(0)
    best = np.array([0.4, 0.7])
    points = [Measured(tuple(x), float(((x - best) ** 2 * [0.8, 0.3]).sum())) for x in rng.random((12, 2))]
    axes = [LR, Axis("decay", 0.0, 1.0)]
    proposed = propose(points, 2, 4)
    assert proposed[0] == (pytest.approx(0.4, abs=1e-6), pytest.approx(0.7, abs=1e-6))
    points += [Measured(at, float(((np.array(at) - best) ** 2 * [0.8, 0.3]).sum())) for at in proposed]
    assert points[choose(points, axes).index].at == proposed[0]


def test_one_point_leaves_nothing_to_choose_and_equal_choices_leave_regret() -> None:
    assert choose([Measured((), 0.3)], []).gap == 0
    two = choose([Measured((), 0.3), Measured((), 0.3)], [])
    assert two.gap == pytest.approx(math.sqrt(2) * response.NOISE / math.sqrt(2 * math.pi))  # E[N(0, 2 s^2)+]
    assert choose([Measured((), 0.3), Measured((), 0.4)], []).gap < 1e-12
    assert regret(0.3, [math.nan]) == 0


def test_points_without_a_value_are_not_chosen() -> None:
    points = [Measured((0.5,), math.nan), *measured([0.2, 0.4, 0.6], 0.4)]
    assert points[choose(points, [LR]).index].at == (0.4,)
    with pytest.raises(ValueError, match="no point has a finite loss"):
        choose([Measured((0.5,), math.inf)], [LR])


def test_the_optimum_of_the_measured_response_is_found_from_four_points() -> None:
    """Straight far away, curved near the optimum, noise of 0.2%: 19 of 20 times the chosen point is within 0.1%."""
    width = math.log(30)

    def loss(share: float, best: float) -> float:
        x = abs(share - best) * width
        return 0.0706 * x * x if x < 1.2 else 0.0706 * 1.44 + 0.17 * (x - 1.2)

    above = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        best = rng.uniform(0.25, 0.75)
        points = [Measured((x,), loss(x, best) + rng.normal(0, 0.002)) for x in (np.arange(4) + rng.random(4)) / 4]
        room = 4
        while room and (proposed := propose(points, 1, room)):
            points += [Measured(at, loss(at[0], best) + rng.normal(0, 0.002)) for at in proposed]
            room -= len(proposed)
        choice = choose(points, [LR])
        above.append(loss(points[choice.index].at[0], best))
    assert np.quantile(above, 0.95) < 0.001
