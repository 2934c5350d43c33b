"""Stability across seeds as a judged metric: pseudo-values by hand, the level of their interval, and the sentence."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from sweep_data import frame_of, simulate_search

from saebench.report import points
from saebench.report.compare import compare
from saebench.report.judge import judge
from saebench.report.metric_table import STABILITY
from saebench.report.search_error import cell_searches
from saebench.report.seed_stability import pseudo_values
from saebench.report.statistics import over_seeds
from saebench.report.verdict import sentence


def test_pseudo_values_by_hand() -> None:
    """U = (0.6 + 0.3 + 0.3) / 3 = 0.4. Without seed 1: 0.3; without 2: 0.3; without 3: 0.6. 3 U - 2 U_s."""
    shares = {(1, 2): 0.6, (1, 3): 0.3, (2, 3): 0.3}
    found = pseudo_values(shares, [1, 2, 3])
    assert found == {1: pytest.approx(0.6), 2: pytest.approx(0.6), 3: pytest.approx(0.0)}
    assert sum(found.values()) / 3 == pytest.approx(0.4)


def test_a_missing_pair_gives_nothing_and_two_seeds_give_no_spread() -> None:
    assert pseudo_values({(1, 2): 0.6, (1, 3): 0.3}, [1, 2, 3]) == {}
    assert pseudo_values({(1, 2): 0.6}, [1, 2]) == {1: 0.6}
    assert pseudo_values({}, [1]) == {}


@pytest.mark.parametrize("seeds", [3, 4, 5])
def test_the_interval_holds_its_level_for_pairs_that_share_seeds(seeds: int) -> None:
    """Differences of pairs without a true difference: a part of either seed and a part of the pair; nominal 5%."""
    rng, rounds, outside = np.random.default_rng(seeds), 3000, 0
    pairs = list(combinations(range(seeds), 2))
    for _ in range(rounds):
        of_seed, of_pair = rng.normal(0, 0.01, seeds), rng.normal(0, 0.005, len(pairs))
        shares = {(a, b): of_seed[a] + of_seed[b] + e for (a, b), e in zip(pairs, of_pair, strict=True)}
        interval = over_seeds([*pseudo_values(shares, range(seeds)).values()])
        outside += bool(interval.low > 0 or interval.high < 0)
    assert outside / rounds < 0.065


def judged(shares: dict[str, float], noise: float = 0.01, about: dict[str, Any] | None = None) -> Any:
    """A sweep of two arms whose seeds 0 (which searches) to 4 share so many latents, give or take `noise`."""
    rng = np.random.default_rng(0)
    more = {} if about is None else {"about": about}
    frame = points.annotate(frame_of(simulate_search(arms=dict.fromkeys(shares, 1.0), seeds=range(1, 5), **more)))
    best = points.chosen(frame, "eval/fvu", False)
    rows = [
        {"group": "", "arm": arm, "level": level, "dict_size": width, "best": True,
         "shares": {pair: shares[arm] + noise * rng.normal() for pair in combinations(range(5), 2)}}
        for (_, arm, level, width), _ in points.cells(frame)
    ]  # fmt: skip
    searches = cell_searches(frame, best, "eval/fvu")
    (found,) = judge(compare(frame, best, searches), frame, searches, {}, ["fvu"], 0.005, rows)
    return found[STABILITY]


def test_an_arm_whose_latents_other_seeds_find_is_better_and_twins_are_not() -> None:
    c = judged({"topk": 0.7, "batchtopk": 0.5})
    better = c.a if c.outcome == "better" else c.b
    assert (c.outcome in ("better", "worse"), better, c.seeds) == (True, "topk", 4)
    assert "latents that other seeds find" in sentence(c)
    assert judged({"topk": 0.6, "batchtopk": 0.6}).outcome in ("undecided", "equal")


def test_the_search_error_grows_with_the_root_of_the_gap_and_an_edge_decides_nothing() -> None:
    """0.5 sqrt(0.0004) = 0.01."""
    assert judged({"topk": 0.7, "batchtopk": 0.5}, about={"gap": 0.0004}).search == pytest.approx(0.01)
    assert judged({"topk": 0.7, "batchtopk": 0.5}, about={"gap": 0.0}).search == 0
    assert judged({"topk": 0.7, "batchtopk": 0.5}, about={"edge": ["lr"]}).outcome == "undecided"
    few = judged({"topk": 0.7, "batchtopk": 0.5}, about={"gap": None})
    assert (few.outcome, math.isinf(few.search)) == ("undecided", True)
