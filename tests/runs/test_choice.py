"""One rule for the best point of a stratum."""

from __future__ import annotations

from saebench.runs.choice import Chosen, Tried, choose


def test_the_best_mean_among_points_with_all_seeds() -> None:
    tried = [Tried("a", 0, 0.30), Tried("b", 0, 0.33), Tried("a", 1, 0.40), Tried("b", 1, 0.33), Tried("c", 0, 0.10)]
    assert choose(tried, {0, 1}, maximize=False) == Chosen((1, 3), "all seeds", 2)  # means: a .35, b .33
    assert choose(tried, {0, 1}, maximize=True) == Chosen((0, 2), "all seeds", 2)


def test_without_a_point_that_has_all_seeds_the_first_seed_decides() -> None:
    tried = [Tried("a", 1, 0.1), Tried("b", 0, 0.3), Tried("c", 0, 0.2), Tried("c", 1, 0.9)]
    assert choose(tried, {0, 1, 2}, maximize=False) == Chosen((2, 3), "first seed", 2)


def test_the_newest_choice_counts_however_good_the_older_one_is() -> None:
    tried = [
        Tried("a", 0, 0.1, "search"),
        Tried("b", 0, 0.2, "search"),
        Tried("a", 1, 0.1, "compare", 1),
        Tried("b", 1, 0.3, "compare", 2),
        Tried("b", 2, 0.4, "compare", 2),
        Tried("c", 1, 0.01, "compare", 0),  # of no choice that was recorded
    ]
    assert choose(tried, {0, 1, 2}, maximize=False) == Chosen((3, 4), "compare")


def test_the_search_seed_decides_until_its_choice_is_measured() -> None:
    tried = [Tried("a", 0, 0.2, "search"), Tried("b", 0, 0.1, "search"), Tried("c", 0, 0.3, "search")]
    assert choose(tried, {0, 1}, maximize=False) == Chosen((1,), "search", 3)
    assert choose(tried, {0, 1}, maximize=True) == Chosen((2,), "search", 3)


def test_no_complete_trial_is_no_choice() -> None:
    assert choose([], {0}, maximize=False) == Chosen((), "nothing")
    assert choose([Tried("a", 1, 0.1, "compare", 0)], {0}, maximize=False) == Chosen((), "nothing")
