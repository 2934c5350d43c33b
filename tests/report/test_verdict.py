"""What a report says of sweeps whose truth is known: metric by metric, never more than the data allow."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sweep_data import frame_of, simulate, simulate_search, with_state

from saebench.report import points
from saebench.report.checks import Check
from saebench.report.comparison import Comparison
from saebench.report.document import Report
from saebench.report.floors import Floors
from saebench.report.judge import JUDGED
from saebench.report.record import Record
from saebench.report.sources import Source
from saebench.report.text import SCREEN, show
from saebench.report.verdict import sentence
from saebench.terminal.console import make_console


def report(trials: list[dict[str, Any]], *, unfinished: bool = False) -> Report:
    record = Record(frame_of(trials))
    if unfinished:
        record.unfinished.add("demo")
    return Report(record)


def only(found: Report, metric: str = "fvu") -> Comparison:
    (judged,) = found.judged
    return judged[metric]


def failed(found: Report) -> dict[str, Check]:
    return {check.name: check for check in found.checks if check.passed is False}


# --- who judges ------------------------------------------------------------------------------------------------------


def test_the_seed_that_chose_does_not_judge_and_the_test_part_is_read() -> None:
    trials = simulate_search(arms={"topk": 1.0, "batchtopk": 1.0})
    for trial in trials:  # a search seed as lucky as can be, and validation values that mislead
        if trial["type"] == "batchtopk":
            factor = 0.5 if trial["seed"] == 0 else 1.0
            trial["metrics"]["test/fvu"] *= factor
            trial["metrics"]["eval/fvu"] *= 0.9
    c = only(report(trials))
    assert c.seeds == 3
    assert not c.decided
    assert abs(c.mean) < 0.02


def test_only_the_newest_choice_of_a_stratum_counts() -> None:
    trials = simulate_search()
    old = [t for t in trials if t["role"] == "compare"]
    again = [{**t, "trial": 100 + i, "choice": "2", "point": "p7"} for i, t in enumerate(old)]
    chosen = report([*trials, *again]).chosen
    assert set(chosen["point"]) == {"p7"}
    assert len(chosen) == len(old)


def test_a_search_without_comparisons_yet_is_shown_and_compared_by_nobody() -> None:
    found = report([t for t in simulate_search() if t["role"] == "search"], unfinished=True)
    assert only(found).outcome == "so far"
    assert found.chosen["chosen_by"].str.contains("by the search seed alone").all()


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_the_difference_that_was_put_in_comes_out_in_every_metric_that_has_it() -> None:
    found = report(simulate_search(arms={"topk": 1.0, "batchtopk": 0.9}, seeds=range(1, 6)))
    assert only(found).outcome == "better"
    assert only(found).mean == pytest.approx(math.log(0.9), abs=0.005)
    assert only(found, "cosine").outcome == "better"
    assert only(found, "knn_overlap_at_10").outcome == "better"
    assert only(found, "dead_fraction").outcome == "same"
    assert only(found, "probing_auc_k5").outcome != "better"
    assert found.verdict.startswith("batchtopk reconstructs better than topk at equal L0: FVU ")
    assert "neighbours kept" in found.verdict
    assert {row["metric"] for row in found.table("metrics").rows()} <= set(JUDGED)


def test_metrics_stand_in_the_order_in_which_they_can_be_trusted() -> None:
    """experiments/known_truth: FVU, probing and scores of labels order arms as the features do that they recover;
    stability of codes and dead latents do not."""
    assert JUDGED[0] == "fvu"
    trusted, doubtful = ("probing_auc_k1", "label_auroc_above_floor"), ("code_stability", "dead_fraction")
    places = [JUDGED.index(name) for name in (*trusted, "knn_overlap_at_10", *doubtful)]
    assert places == sorted(places)
    rows = report(simulate_search()).table("metrics").rows()
    names = [row["metric"] for row in rows]
    assert names == sorted(names, key=JUDGED.index)


def test_a_metric_in_which_more_is_better_counts_the_right_way_round() -> None:
    trials = simulate_search(seeds=range(1, 6))
    for trial in trials:
        for part in ("eval", "test"):
            trial["metrics"][f"{part}/cosine"] += 0.1 if trial["type"] == "topk" else 0
    c = only(report(trials), "cosine")
    assert (c.a, c.outcome) == ("batchtopk", "worse")
    assert sentence(c).startswith("topk is better than batchtopk in cosine at equal L0: cosine 0.0")


@pytest.mark.parametrize(
    ("factor", "noise", "outcome"),
    [(1.0, 0.0003, "equal"), (0.998, 0.0001, "small"), (0.98, 0.0003, "better"), (0.999, 0.02, "undecided")],
)
def test_outcomes(factor: float, noise: float, outcome: str) -> None:
    arms = {"topk": 1.0, "batchtopk": factor}
    c = only(report(simulate_search(arms=arms, noise=noise, seeds=range(1, 6), about={"gap": 0.0})))
    assert c.outcome == outcome
    words = {"equal": "are equal within 0.5% at equal L0", "small": "by too little to matter",
             "better": "reconstructs better", "undecided": "seeds would"}  # fmt: skip
    assert words[outcome] in sentence(c)


def test_the_margin_is_the_spec_s() -> None:
    found = report(simulate_search(arms={"topk": 1.0, "batchtopk": 0.98}, noise=0.0003))
    c = only(found)
    assert (c.outcome, replace(c, margin=0.05).outcome) == ("better", "small")
    assert "less than 5%" in sentence(replace(c, margin=0.05))


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"edge": ["lr"]}, "a best point lies at the edge of its range (batchtopk: lr, topk: lr): widen the range"),
        ({"gap": None, "needed": 9}, "too few points to know the best setting of each arm: about 9 points would do"),
        ({"gap": None}, "draw more points (search.points)"),
        ({"gap": 0.05, "needed": 12}, "about 12 points would locate the best settings"),
    ],
)
def test_a_search_that_leaves_too_much_open_decides_nothing(about: dict[str, Any], said: str) -> None:
    c = only(report(simulate_search(about=about)))
    assert c.outcome == "undecided"
    assert said in sentence(c)


def test_an_unfinished_sweep_decides_nothing_anywhere() -> None:
    found = report(simulate_search(), unfinished=True)
    assert {c.outcome for c in found.judged[0].values()} <= {"so far"}
    assert found.verdict.startswith("So far (44 trials ended, more are due), nothing is decided between ")
    assert "trials" in failed(found)
    assert not any(word in found.verdict for word in ("better", "95% CI"))


def test_an_unfinished_sweep_without_a_common_stratum_says_so_far() -> None:
    trials = [t if t["type"] == "topk" else {**t, "state": "running"} for t in simulate_search()]
    text = report(trials, unfinished=True).verdict
    assert text.startswith("So far (22 trials ended, 22 under way or interrupted), topk and batchtopk have no common ")


def test_search_error_widens_interval_and_p() -> None:
    narrow, wide = (only(report(simulate_search(about={"gap": gap}))) for gap in (0.0, 0.01))
    assert wide.low == pytest.approx(narrow.low - 0.01)
    assert wide.high == pytest.approx(narrow.high + 0.01)
    assert wide.p > narrow.p
    assert "search error 1.0% included" in sentence(wide)


def test_p_and_interval_agree() -> None:
    """p is 0.05 where the widened interval ends at 0."""
    c = only(report(simulate_search()))
    half = (c.high - c.low) / 2 - c.search
    error = half / stats.t.ppf(0.975, c.seeds - 1)
    assert c.p == pytest.approx(2 * stats.t.sf((abs(c.mean) - c.search) / error, c.seeds - 1))


def test_a_metric_that_only_one_arm_has_is_left_out() -> None:
    trials = simulate_search()
    for trial in trials:
        if trial["type"] == "topk":
            trial["metrics"] = {k: v for k, v in trial["metrics"].items() if "knn" not in k}
    found = report(trials)
    assert "knn_overlap_at_10" not in found.judged[0]
    assert "cosine" in found.judged[0]


def test_a_metric_without_spread_is_the_same_or_undecided_never_better() -> None:
    """Every seed of an arm has one value: equal arms are the same; unequal ones have no interval, and why is said."""
    for trial in (trials := simulate_search()):
        trial["metrics"]["test/cosine"] = 0.9
    assert only(report(trials), "cosine").outcome == "same"
    for trial in trials:
        if trial["type"] == "topk":
            trial["metrics"]["test/cosine"] = 0.8
    c = only(report(trials), "cosine")
    assert c.outcome == "undecided"
    assert "its 3 seeds gave the same values: they did not vary the training" in sentence(c)


def test_identical_arms_are_called_the_same_in_every_metric() -> None:
    trials = [t for t in simulate_search() if t["type"] == "topk"]
    twins = [{**t, "trial": 100 + t["trial"], "type": "batchtopk", "stratum": t["stratum"].replace("topk", "batchtopk"),
              "params": {**t["params"], "type": "batchtopk"}} for t in trials]  # fmt: skip
    found = report([*trials, *twins])
    assert {c.outcome for c in found.judged[0].values()} == {"same"}
    assert "have the same FVU at equal L0, in all 2 strata" in found.verdict


def test_a_best_point_at_an_edge_decides_nothing_in_its_own_stratum_either() -> None:
    found = report(simulate_search(arms={"topk": 1.0, "batchtopk": 0.9}, about={"edge": ["lr"]}))
    assert all(row["p_holm"] == 1 for row in found.table("arms").rows())
    inside = report(simulate_search(arms={"topk": 1.0, "batchtopk": 0.9}))
    assert all(row["p_holm"] < 0.05 for row in inside.table("arms").rows())


def test_no_arm_leads_where_none_is_shown_to_be_better() -> None:
    text = report(simulate_search(arms=dict.fromkeys(["topk", "batchtopk", "gated"], 1.0), noise=0.02)).verdict
    assert text.startswith("No arm is shown to be better in FVU at equal L0: ")
    assert "not told apart from" in text


def test_one_comparing_seed_decides_nothing() -> None:
    c = only(report(simulate_search(seeds=(1,))))
    assert c.outcome == "undecided"
    assert "one seed cannot tell" in sentence(c)


def test_what_was_asked_first_does_not_pay_for_what_was_measured_besides() -> None:
    found = report(simulate_search(rng_seed=4))
    judged = found.judged[0]
    assert judged["fvu"].p_pairs == judged["fvu"].p
    others = [c for name, c in judged.items() if name != "fvu" and c.p == c.p]
    assert max(c.p_pairs / c.p for c in others) == pytest.approx(len(others))


# --- controls, several arms ------------------------------------------------------------------------------------------


def test_a_control_is_an_arm_of_its_own_and_the_verdict_says_what_is_above_it() -> None:
    found = report(simulate_search(arms={"topk": 1.0, "topk/frozen_decoder": 1.2}))
    assert set(found.frame["arm"]) == {"topk", "topk (frozen decoder)"}
    assert found.verdict.startswith("topk beats its control (frozen decoder) in FVU (16.")
    assert ", not in " in found.verdict


def test_several_arms_are_told_as_a_ranking() -> None:
    arms = {"topk": 1.0, "batchtopk": 0.97, "jumprelu": 0.9, "gated": 0.97}
    text = report(simulate_search(arms=arms, seeds=range(1, 6))).verdict
    assert text.startswith("jumprelu has the least FVU at equal L0: better than ")
    assert "3 more pairs of arms: see the table verdict" in text


# --- the statistic holds its level -----------------------------------------------------------------------------------


def test_twins_are_called_different_in_at_most_5_of_100_sweeps() -> None:
    """Arms that are the same thing, each searched with its own noise: the whole way from trials to outcome, where the
    recorded gap is what the choice loses on average. 3 comparing seeds, 2 strata, 8 points."""
    rounds, called = 60, 0
    for i in range(rounds):
        trials = simulate_search(arms={"topk": 1.0, "batchtopk": 1.0}, rng_seed=i, extra=False)
        called += only(report(trials)).outcome in ("better", "worse", "small")
    assert called <= 0.05 * rounds + 3 * math.sqrt(0.05 * 0.95 * rounds)


def test_the_widened_interval_holds_its_level_and_the_plain_one_does_not() -> None:
    """The step that the report adds, on 20,000 sweeps: arms whose chosen points are off by a hidden bias, and a gap
    of its expected size. Nominal 5%."""
    rng, n, seeds, sd, gap = np.random.default_rng(0), 20_000, 3, 0.002, 0.002
    bias = np.abs(rng.normal(0, gap, (2, n)))
    d = rng.normal(0, sd, (n, seeds)) + (bias[0] - bias[1])[:, None]
    half = stats.t.ppf(0.975, seeds - 1) * d.std(1, ddof=1) / math.sqrt(seeds)
    plain = (np.abs(d.mean(1)) > half).mean()
    widened = (np.abs(d.mean(1)) > half + gap).mean()
    assert plain > 0.10
    assert widened < 0.05


# --- checks, and a screen --------------------------------------------------------------------------------------------


def changed(key: str, value: float, kind: str = "topk") -> list[dict[str, Any]]:
    trials = simulate_search()
    for trial in trials:
        if trial["type"] == kind:
            trial["metrics"][key] = value
    return trials


def shown(trials: list[dict[str, Any]] | None = None, *, unfinished: bool = False, **held: Any) -> Report:
    """A report; `held` stands for what it would read on demand, `floors` and `data` for the sweep's files. No MLflow
    server has the trials: a report with a source would ask one for curves and floors."""
    found = report(simulate_search() if trials is None else trials, unfinished=unfinished)
    if "data" in held:
        found.record.sources = (Source("demo", "", "", "", lock={"data": held.pop("data")}),)
        held |= {"chosen_curves": pd.DataFrame(columns=["run_id", "samples", "value"]), "floors": Floors([])}
    found.__dict__.update(held)
    return found


def curves(best_at: int) -> Report:
    """Every chosen trial has a curve of ten marks whose best is that one."""
    found = shown()
    rows = [(run, 100 * i, abs(i - best_at)) for run in found.chosen["run_id"] for i in range(1, 11)]
    return shown(chosen_curves=pd.DataFrame(rows, columns=["run_id", "samples", "value"]))


def stable(share: float) -> Report:
    found = shown()
    rows = [{"group": "", "arm": arm, "level": level, "dict_size": width, "level_name": "k", "best": True, "seeds": 4,
             "pairs": 6, "same_share": share, "cosine": 0.5, "cosine_lowest": 0.4, "cosine_highest": 0.6, "alive": None,
             "sampled": None, "complete": 4, "pruned": 0, "failed": 0, "unfinished": 0,
             "shares": dict.fromkeys(combinations(range(4), 2), share)}
            for (_, arm, level, width), _ in points.cells(found.frame)]  # fmt: skip
    return shown(_stable=rows)


def probed(pca: float) -> list[dict[str, Any]]:
    trials = simulate_search()
    for trial in trials:
        trial["metrics"]["test/probing_auc_k5_pca"] = pca
    return trials


def floored(fvu: float) -> Report:
    rows = [{"sweep": "demo", "floor": "kmeans", "k": k, "dict_size": 1536, "fvu": fvu} for k in (16, 32)]
    return shown(floors=Floors(rows))


def leaky(near: int) -> Report:
    return shown(data={"near_test": near, "near_test_of": 200, "near_above": 0.95, "equal_test": 0})


def budgeted(samples: int) -> list[dict[str, Any]]:
    trials = simulate_search()
    for trial in trials:
        if trial["type"] == "topk":
            trial["params"] = {**trial["params"], "samples": samples}
    return trials


CHECKS = {
    "trials": (lambda: shown(unfinished=True), lambda: shown(), "44 trials ended, more are due"),
    "ranges": (lambda: shown(simulate_search(about={"edge": ["lr"]})), lambda: shown(),
               "edge of its range (batchtopk: lr, topk: lr)"),
    "search": (lambda: shown(simulate_search(about={"gap": None, "needed": 9})), lambda: shown(),
               "Set search.points to about 9"),
    "memory": (lambda: shown(changed("train_sample/fvu", 0.1)), lambda: shown(), "times that of training rows (topk)"),
    "curves": (lambda: curves(5), lambda: curves(10), "before the last tenth in 12 of 12 trials"),
    "stability": (lambda: stable(0.3), lambda: stable(0.8), "70% of latents are found by no other seed"),
    "classes": (lambda: shown(probed(0.7)), lambda: shown(probed(0.6)), "on 5 principal components 0.700 (worse: "),
    "dead latents": (lambda: shown(changed("test/dead_fraction", 0.3)), lambda: shown(),
                     "up to 30% fire on no test text (topk)"),
    "test texts": (lambda: shown(simulate_search(examples=300.0)), lambda: shown(), "300 test texts"),
    "leak": (lambda: leaky(20), lambda: leaky(3), "20 of 200 test texts have a training text at a cosine above 0.95"),
    "sparsity": (lambda: shown(changed("test/l0", 24.0)), lambda: shown(), "off its target (topk)"),
    "budgets": (lambda: shown(budgeted(5)), lambda: shown(), "unequal numbers of examples"),
    "failures": (lambda: shown([*simulate_search(), with_state({**simulate_search()[0], "trial": 99}, "failed")]),
                 lambda: shown(), "1 trial failed"),
    "floors": (lambda: floored(0.1), lambda: floored(0.9), "better than every score without training, in FVU: no arm"),
}  # fmt: skip
"""Check -> a report in which it fails, one in which it passes, what the failing one says."""


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_fails_where_it_should_says_what_to_do_and_passes_elsewhere(name: str) -> None:
    fails, passes, said = CHECKS[name]
    check = failed(fails())[name]
    assert said in check.text
    assert check.advice
    assert check.advice in check.text
    assert {c.name: c.passed for c in passes().checks}[name] is True


def test_the_check_of_stability_has_the_chance_level_beside_it() -> None:
    """1,536 random directions in 384 dimensions: hardly one has a partner above 0.7."""
    assert failed(stable(0.3))["stability"].found.endswith("at random 100%")


def test_a_sweep_without_a_test_part_says_so() -> None:
    assert "the sweep has no test part" in failed(report(simulate()))["parts"].text
    assert "parts" not in {c.name for c in shown().checks}


def test_classes_told_as_well_by_five_components_neither_fail_nor_pass() -> None:
    """0.645 give or take 0.004: a difference of 0.0005 is no difference."""
    check = next(c for c in shown(probed(0.6452)).checks if c.name == "classes")
    assert check.passed is None
    assert "not told apart: " in check.found


@pytest.mark.parametrize("arms", [{"topk": 1.0, "batchtopk": 0.97}, dict.fromkeys(["topk", "batchtopk", "gated"], 1.0)])
def test_the_default_report_fits_a_screen_of_80_columns(arms: dict[str, float]) -> None:
    out = io.StringIO()
    show(report(simulate_search(arms=arms, levels=(16, 32, 64))), make_console(out, width=80))
    lines = out.getvalue().splitlines()
    assert len(lines) <= SCREEN
    assert all(len(line) <= 80 for line in lines)
    assert "Before you use it" in out.getvalue()
    assert lines[0].startswith("demo")


def test_all_prints_every_table() -> None:
    out = io.StringIO()
    show(report(simulate_search()), make_console(out, width=160), everything=True)
    assert "Arms side by side at equal L0" in out.getvalue()
    assert "Similarities after reconstruction" in out.getvalue()


def test_a_control_fails_no_check() -> None:
    """Nobody uses it: a frozen decoder has dead latents and is found by no other seed."""
    trials = simulate_search(arms={"topk": 1.0, "topk/frozen_decoder": 1.3})
    for trial in trials:
        if trial["params"].get("control"):
            trial["metrics"]["test/dead_fraction"] = 0.4
    assert set(failed(report(trials))) == {"classes"}


def test_an_undecided_control_is_not_called_beaten_or_unbeaten() -> None:
    """FVU is 23% lower than the control's, but the best point lies at the edge of its range."""
    trials = simulate_search(arms={"topk": 1.0, "topk/frozen_decoder": 1.3}, about={"edge": ["lr"]})
    text = report(trials).verdict
    assert "topk is not shown to beat its control (frozen decoder) in any metric: a best point lies at the edge" in text
    trials = simulate_search(arms={"topk": 1.0, "topk/frozen_decoder": 1.3})
    text = report(trials).verdict
    assert re.search(r"topk beats its control \(frozen decoder\) in FVU \(2.*; undecided in .*probing", text)


def test_the_screen_has_no_pair_of_an_arm_and_another_ones_control() -> None:
    arms = {"topk": 1.0, "batchtopk": 0.97, "topk/frozen_decoder": 1.3}
    out = io.StringIO()
    show(report(simulate_search(arms=arms)), make_console(out))
    text = out.getvalue()
    assert "topk vs topk (frozen decoder)" in text
    assert "batchtopk vs topk (frozen decoder)" not in text
