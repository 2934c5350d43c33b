"""Labels of arms, cells, and how the best point of a cell is chosen."""

from __future__ import annotations

import pytest
from sweep_data import frame_of, simulate

from saebench.report import points


def only(trials, **fields):
    return [t for t in trials if all(t[k] == v for k, v in fields.items())]


def one_cell(values, seeds=(0, 1)):
    """Trials of one cell; values maps (point, seed) to FVU."""
    base = simulate(arms={"topk": 1.0}, levels=(16,), widths=(1536,), points=1, seeds=(0,))[0]
    trials = []
    for i, ((point, seed), fvu) in enumerate(values.items()):
        trials.append(
            {**base, "trial": i, "point": point, "seed": seed, "metrics": {**base["metrics"], "eval/fvu": fvu}}
        )
    frame = points.annotate(frame_of(trials))
    return points.choose(frame, set(seeds), "eval/fvu", False)


def test_the_best_mean_among_points_with_all_seeds_wins() -> None:
    best, how = one_cell({("a", 0): 0.30, ("a", 1): 0.40, ("b", 0): 0.33, ("b", 1): 0.33, ("c", 0): 0.10})
    assert set(best["point"]) == {"b"}  # a: .35, b: .33; c is better at seed 0 but has no seed 1
    assert how == "best mean of 2 seeds, of 2 points"


def test_where_no_point_has_all_seeds_the_first_seed_decides() -> None:
    best, how = one_cell({("a", 0): 0.30, ("b", 0): 0.20, ("b", 1): 0.9}, seeds=(0, 1, 2))
    assert set(best["point"]) == {"b"}
    assert len(best) == 2
    assert how == "best at seed 0, of 2 points"


def test_a_point_without_a_value_is_not_chosen() -> None:
    best, how = one_cell({("a", 0): float("nan"), ("b", 0): 0.2}, seeds=(0,))
    assert set(best["point"]) == {"b"}
    best, how = one_cell({("a", 0): float("nan")}, seeds=(0,))
    assert best.empty
    assert how == "no complete trial"


def test_a_sweep_stopped_before_its_first_mark_has_no_metric_and_no_best_point() -> None:
    base = simulate(arms={"topk": 1.0}, levels=(16,), widths=(1536,), points=1, seeds=(0,))[0]
    frame = points.annotate(frame_of([{**base, "state": "interrupted", "metrics": {}}]))
    assert "eval/fvu" not in frame
    best, how = points.choose(frame, {0}, "eval/fvu", False)
    assert best.empty
    assert how in ("no complete trial", "only point")


def test_maximize_turns_it_round() -> None:
    frame = points.annotate(frame_of(simulate(arms={"topk": 1.0}, levels=(16,), widths=(1536,), seeds=(0,))))
    low, _ = points.choose(frame, {0}, "eval/fvu", False)
    high, _ = points.choose(frame, {0}, "eval/fvu", True)
    assert (set(low["point"]), set(high["point"])) == ({"p0"}, {"p1"})


def test_a_type_alone_is_its_label() -> None:
    assert points.arms(points.annotate(frame_of(simulate()))) == ["topk", "batchtopk"]


def test_arms_of_one_type_are_told_apart_by_what_differs() -> None:
    trials = simulate(arms={"topk": 1.0})
    other = [{**t, "trial": t["trial"] + 100, "stratum": t["stratum"] + "-aux_coeff_0"} for t in trials]
    for group, value in ((trials, 0.03125), (other, 0)):
        for t in group:
            t["params"] = {**t["params"], "aux_coeff": value, "k_aux": 192}
    assert points.arms(points.annotate(frame_of([*trials, *other]))) == ["topk aux_coeff=0.03125", "topk aux_coeff=0"]


def test_what_was_searched_does_not_tell_arms_apart() -> None:
    trials = simulate(arms={"topk": 1.0})
    other = [{**t, "trial": t["trial"] + 100, "stratum": t["stratum"] + "-b"} for t in trials]
    assert points.arms(points.annotate(frame_of([*trials, *other]))) == ["topk #1", "topk #2"]


def test_one_type_in_two_sweeps_carries_their_names() -> None:
    frame = points.annotate(frame_of([*simulate(), *simulate(arms={"topk": 1.0}, name="again")]))
    assert set(points.arms(frame)) == {"topk @again", "topk @demo", "batchtopk"}


def test_data_and_budget_make_groups() -> None:
    trials = simulate()
    for trial in only(trials, type="topk"):
        trial["params"]["samples"] = 5
    frame = points.annotate(frame_of(trials))
    assert frame["group"].nunique() == 2
    assert points.annotate(frame_of(simulate()))["group"].unique().tolist() == [""]


@pytest.mark.parametrize(("kind", "name"), [("jumprelu", "target_l0"), ("topk", "k")])
def test_the_level_is_the_parameter_that_sets_the_sparsity(kind: str, name: str) -> None:
    frame = points.annotate(frame_of(simulate(arms={kind: 1.0})))
    assert set(frame["level_name"]) == {name}
    assert sorted(set(frame["level"])) == [16, 32, 64]
