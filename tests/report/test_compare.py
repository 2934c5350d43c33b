"""Arms against each other, on sweeps with a known difference."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sweep_data import frame_of, simulate

from saebench.report import points
from saebench.report.compare import compare
from saebench.report.text_interval import runs_of, with_texts
from saebench.report.verdict import sentence
from saebench.report.wording import percent, worded


def compared(trials):
    frame = points.annotate(frame_of(trials))
    return compare(frame, points.chosen(frame, "eval/fvu", False))


def test_the_difference_that_was_put_in_comes_out() -> None:
    (c,) = compared(simulate(arms={"topk": 1.0, "batchtopk": 0.95}, seed_sd=0.001, cell_sd=0.0005, seeds=range(5)))
    assert (c.a, c.b, c.seeds, len(c.strata)) == ("batchtopk", "topk", 5, 6)
    assert percent(c.mean) == pytest.approx(-5, abs=0.2)
    assert c.decided
    assert c.lower == 6
    assert c.sign_p == pytest.approx(2 / 64)


def test_the_sentence_is_the_one_asked_for() -> None:
    (c,) = compared(simulate())
    text = sentence(c)
    assert text.startswith("batchtopk reconstructs better than topk at equal L0: FVU ")
    assert text.endswith("% lower (95% CI 4.0 to 6.7), in 6 of 6 strata; 3 seeds")


def many_sweeps(factor: float, rounds: int):
    """Comparisons of simulated sweeps of 2 points, 3 seeds and 2 strata; batchtopk's FVU is `factor` times topk's."""
    frame = points.annotate(frame_of(simulate(levels=(16, 32), widths=(1536,))))
    frame = frame[frame["state"] == "complete"].copy()
    kinds, seeds = frame["type"].to_numpy(), frame["seed"].to_numpy(dtype=int)
    worse = np.where(frame["point"] == "p1", 1.2, 1.0)
    for i in range(rounds):
        rng = np.random.default_rng(i)
        luck = np.where(kinds == "topk", rng.normal(0, 0.02, 3)[seeds], rng.normal(0, 0.02, 3)[seeds])
        noise = np.exp(luck + rng.normal(0, 0.01, len(frame)))
        frame["eval/fvu"] = frame["final/fvu"] = (
            np.where(kinds == "topk", 1, factor) * 10 * frame["level"] ** -0.35 * worse * noise
        )
        (c,) = compare(frame, points.chosen(frame, "eval/fvu", False))
        yield c


def test_the_interval_covers_the_truth_through_the_whole_way() -> None:
    """Trials -> best points -> pairs -> interval, where seeds have luck of their own and trials have theirs."""
    truth = {"batchtopk": math.log(0.95), "topk": -math.log(0.95)}
    covered = [c.low <= truth[c.a] <= c.high for c in many_sweeps(0.95, 100)]
    assert np.mean(covered) >= 0.88  # 95% less 3 standard errors; that it is not too wide, test_statistics.py says


def test_two_arms_that_do_not_differ_are_not_told_apart_more_than_5_times_in_100() -> None:
    decided = sum(c.decided for c in many_sweeps(1.0, 40))
    assert decided <= 6  # 2 expected, 3 standard errors above


def test_where_the_data_do_not_decide_it_says_how_many_seeds_would() -> None:
    (c,) = compared(simulate(arms={"topk": 1.0, "batchtopk": 0.998}))
    assert not c.decided
    assert c.needed is not None
    assert c.needed > 3
    text = sentence(c)
    assert text.startswith("the data do not decide between ")
    assert f"about {c.needed} seeds would decide it" in text


def test_one_seed_decides_nothing() -> None:
    (c,) = compared(simulate(seeds=(0,)))
    assert not c.decided
    assert "one seed cannot tell" in sentence(c)
    assert "lower in 6 of 6 strata" in sentence(c)


def test_seeds_that_gave_the_same_values_decide_nothing() -> None:
    (c,) = compared(simulate(seed_sd=0, cell_sd=0))
    assert not c.decided
    assert "gave the same values" in sentence(c)


@pytest.mark.parametrize(("seeds", "levels", "where"), [((0, 1, 2), (16, 32), "all 4 strata; 3 seeds"),
                                                        ((0,), (16, 32), "all 4 strata; 1 seed")])  # fmt: skip
def test_arms_that_are_the_same_are_said_to_be(seeds, levels, where) -> None:
    trials = simulate(seeds=seeds, levels=levels)
    metrics = {}
    for trial in trials:
        where_it_is = tuple(trial["params"][key] for key in ("k", "dict_size")), trial["point"], trial["seed"]
        trial["metrics"] = metrics.setdefault(where_it_is, trial["metrics"])
    (c,) = compared(trials)
    assert sentence(c) == f"{c.a} and {c.b} have the same FVU at equal L0, in {where}"
    (again,) = [with_texts(c, {run: np.linspace(1, 2, 300) for run in runs_of([c])})]
    assert sentence(again) == f"{sentence(c)}; equal over 300 test texts, too"


@pytest.mark.parametrize(
    ("ratio", "words"),
    [(0.959, "4.1% lower"), (1.003, "0.3% higher"), (1.00002, "under 0.01% higher"), (1 + 1e-12, "equal")],
)
def test_no_difference_is_worded_as_zero_percent(ratio: float, words: str) -> None:
    assert worded(math.log(ratio)) == words


def test_one_stratum_is_enough() -> None:
    (c,) = compared(simulate(levels=(32,), widths=(1536,)))
    assert "in 1 of 1 strata" in sentence(c)
    assert c.strata[0].p_holm == c.strata[0].p


def test_a_nan_leaves_its_seed_out_of_its_stratum_only() -> None:
    trials = simulate(points=1)
    trials[0]["metrics"]["eval/fvu"] = math.nan
    (c,) = compared(trials)
    assert [len(s.pairs) for s in c.strata] == [2, 3, 3, 3, 3, 3]
    assert c.decided


def test_a_failed_arm_is_not_compared_and_the_sentence_says_so() -> None:
    trials = [t if t["type"] == "topk" else {**t, "state": "failed"} for t in simulate()]
    (c,) = compared(trials)
    assert not c.decided
    assert sentence(c).startswith("topk and batchtopk were not compared: they have no common stratum")


# --- L0 that is not equal --------------------------------------------------------------------------------------------


def scaled_l0(trials, kind, factor):
    """The trials of one type at another L0, moved along the true curve FVU ~ L0^-0.35."""
    for trial in trials:
        if trial["type"] == kind:
            trial["metrics"]["eval/l0"] *= factor
            trial["metrics"]["eval/fvu"] *= factor**-0.35
    return trials


def test_unequal_l0_is_interpolated_exactly_on_a_power_law() -> None:
    trials = simulate(arms={"topk": 1.0, "vanilla": 1.25}, levels=(8, 16, 32, 64), cell_sd=0, seed_sd=0)
    (c,) = compared(scaled_l0(trials, "vanilla", 1.3))
    assert c.interpolated == len(c.strata) == 6
    assert [s.mean for s in c.strata] == pytest.approx([-math.log(1.25)] * 6)
    assert "interpolated along L0 in 6 of 6 strata" in sentence(c)


def test_nothing_is_extrapolated_and_what_is_left_out_is_named() -> None:
    trials = simulate(arms={"topk": 1.0, "vanilla": 1.25}, levels=(8, 16, 32, 64))
    (c,) = compared(scaled_l0(trials, "vanilla", 1.3))
    assert len(c.left_out) == 2  # one level at each of two widths
    assert "2 left out" in sentence(c)
    ends = sorted(s.l0 for s in c.strata)
    assert ends[0] >= 8
    assert ends[-1] <= 64 * 1.3


def test_ranges_that_do_not_meet_are_not_compared() -> None:
    (c,) = compared(scaled_l0(simulate(arms={"topk": 1.0, "vanilla": 1.25}, levels=(8, 16)), "vanilla", 10))
    assert not c.strata
    assert "were not compared" in sentence(c)


@pytest.mark.parametrize(("factor", "interpolated"), [(1.04, 0), (1.06, 6)])
def test_five_percent_is_the_line(factor: float, interpolated: int) -> None:
    trials = simulate(arms={"topk": 1.0, "jumprelu": 1.25}, levels=(8, 16, 32, 64))
    (c,) = compared(scaled_l0(trials, "jumprelu", factor))
    assert c.interpolated == interpolated
    assert ("measured L0 of" in sentence(c)) == (interpolated == 0)


def test_k_and_target_l0_of_one_value_meet_when_measured_l0_does() -> None:
    (c,) = compared(simulate(arms={"topk": 1.0, "jumprelu": 1.1}))
    assert [s.counterpart and s.counterpart[1] for s in c.strata] == [16, 32, 64, 16, 32, 64]


def test_widths_that_only_one_arm_has_are_left_out() -> None:
    trials = [t for t in simulate() if t["type"] == "topk" or t["params"]["dict_size"] == 1536]
    (c,) = compared(trials)
    assert {s.dict_size for s in c.strata} == {1536}


def test_sweeps_over_other_data_are_never_paired() -> None:
    here, there = simulate(arms={"topk": 1.0}), simulate(arms={"batchtopk": 0.5}, name="other")
    assert len(compared([*here, *there])) == 1
    for trial in there:
        trial["params"]["data.num_examples"] = 99
    assert compared([*here, *there]) == []


# --- several pairs, texts --------------------------------------------------------------------------------------------


def test_p_over_pairs_is_corrected_over_all_of_them() -> None:
    found = compared(simulate(arms={"topk": 1.0, "batchtopk": 0.99, "jumprelu": 1.01, "gated": 1.0}))
    assert len(found) == 6
    assert all(c.p_pairs >= c.p for c in found)
    assert max(c.p_pairs / c.p for c in found) > 2


def errors_of(c, noise: float, texts: int = 500):
    """Squared errors per run whose sums are the runs' FVU, with independent noise per text."""
    rng, found = np.random.default_rng(0), {}
    for run in sorted(runs_of([c])):
        found[run] = rng.gamma(1 / noise**2, noise**2, texts)
    return found


def test_texts_give_their_own_interval_and_can_leave_open_what_seeds_decide() -> None:
    (c,) = compared(simulate(seed_sd=0.001, cell_sd=0.001))
    frame = points.annotate(frame_of(simulate(seed_sd=0.001, cell_sd=0.001)))
    fvu = dict(zip(frame["run_id"], frame["eval/fvu"], strict=True))

    def scaled(noise):
        return {run: e * fvu[run] / e.sum() for run, e in errors_of(c, noise).items()}

    quiet, loud = with_texts(c, scaled(0.1)), with_texts(c, scaled(5.0))
    assert quiet.texts == 500
    assert quiet.text_low < c.mean < quiet.text_high < 0
    assert quiet.decided
    assert "over 500 test texts" in sentence(quiet)
    assert loud.text_low < 0 < loud.text_high
    assert not loud.decided
    assert "more texts, not more seeds" in sentence(loud)


def test_evaluations_that_are_missing_or_of_another_hold_out_leave_the_seeds_interval() -> None:
    (c,) = compared(simulate())
    assert with_texts(c, {}) == c
    runs = sorted(runs_of([c]))
    assert with_texts(c, {run: np.ones(5 + (run == runs[0])) for run in runs}) == c
    some = {run: e for i, (run, e) in enumerate(errors_of(c, 0.1).items()) if i % 2}
    partly = with_texts(c, some)
    assert (partly.mean, partly.low, partly.high) == (c.mean, c.low, c.high)


def test_the_text_interval_is_of_the_strata_that_the_seeds_interval_is_of() -> None:
    trials = [t for t in simulate(points=1) if t["seed"] == 0 or t["params"]["k"] != 64]
    for trial in trials:
        if trial["params"]["k"] == 64 and trial["type"] == "batchtopk":
            trial["metrics"]["eval/fvu"] *= 3  # one seed: in no pooled number
    (c,) = compared(trials)
    frame = points.annotate(frame_of(trials))
    errors = {run: np.full(50, fvu) for run, fvu in zip(frame["run_id"], frame["eval/fvu"], strict=True)}
    found = with_texts(c, errors)
    assert found.text_low == pytest.approx(c.mean)  # every text alike: no noise
    assert found.text_high == pytest.approx(c.mean)
