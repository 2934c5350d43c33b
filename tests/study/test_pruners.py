"""When a trial is stopped, and that the numbers told with a verdict are those that led to it."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest

from saebench.config import TrialConfig
from saebench.plan import Plan, make_plan
from saebench.runs.events import Verdict
from saebench.spec import parse_spec
from saebench.study import Decision, ParetoPruner, Search, report_pair
from saebench.study.pruners import PRUNERS
from saebench.sweep_config import PruneConfig

SAMPLES = 20_000
MARKS = tuple(range(1_000, SAMPLES + 1, 1_000))


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def plan(pruner: str, points: int = 12, k: tuple[int, ...] = (16,), direction: str = "minimize", **prune: Any) -> Plan:
    objective = "eval/fvu" if direction == "minimize" else "eval/explained_variance"
    values = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": list(k), "dict_size": 256}],
        "train": {"samples": SAMPLES, "batch_size": 100, "lr": {"low": 1e-4, "high": 1e-2, "log": True}},
        "search": {"sampler": "random", "points": points, "objective": objective, "direction": direction},
        "prune": {"pruner": pruner, "warmup": 5_000, **prune},
    }
    return make_plan(parse_spec(values), 384)


def train(search: Search, config: TrialConfig, level: float, key: str = "eval/fvu") -> list[Decision]:
    """A trial whose curve falls to `level`, until it is stopped or at its end; its decisions."""
    decisions = []
    for samples in MARKS:
        value = level * (1 + 1_000 / samples)
        decisions.append(search.report(config.number, samples, {key: value, "eval/l0": 16.0}))
        if decisions[-1].verdict == Verdict.PRUNE:
            search.tell(config.number, "pruned", {key: value}, None, decisions[-1].numbers)
            return decisions
    search.tell(config.number, "complete", {key: level})
    return decisions


def sweep(made: Plan, journal: Path, levels: list[float], key: str = "eval/fvu") -> list[list[Decision]]:
    search, found = Search(made, journal), []
    for level in levels:
        config = search.ask()
        assert config is not None
        found.append(train(search, config, level, key))
    return found


def stopped(decisions: list[Decision]) -> int | None:
    last = decisions[-1]
    return int(last.numbers["samples"]) if last.verdict == Verdict.PRUNE else None


def shuffled(n: int, seed: int = 0) -> list[float]:
    levels = [0.1 + 0.01 * i for i in range(n)]
    random.Random(seed).shuffle(levels)
    return levels


# --- the rules -------------------------------------------------------------------------------------------------------


def test_none_stops_nothing(tmp_path: Path) -> None:
    assert not any(map(stopped, sweep(plan("none"), tmp_path / "j", shuffled(12))))


def test_median_stops_what_is_worse_than_half_of_the_complete_trials(tmp_path: Path) -> None:
    first, second, third, fourth = sweep(plan("median"), tmp_path / "j", [0.1, 0.3, 0.19, 0.21])
    assert stopped(first) is None
    assert stopped(second) is None  # one complete trial is no median to go by: startup_trials is 2
    assert stopped(third) is None
    # at 5,000 examples the complete curves are at 0.12, 0.36 and 0.228; the fourth's 0.252 is above their median
    assert stopped(fourth) == 5_000
    numbers = fourth[-1].numbers
    assert numbers == {
        "pruner": "median", "samples": 5_000, "value": pytest.approx(0.252), "best": pytest.approx(0.252),
        "threshold": pytest.approx(0.228), "rung": None, "peers": 3,
    }  # fmt: skip


def test_median_compares_with_complete_trials_at_the_same_mark_only(tmp_path: Path) -> None:
    made = plan("median")
    search = Search(made, tmp_path / "j")
    configs = [config for _ in range(6) if (config := search.ask()) is not None]
    for config in configs[:2]:  # complete, but without this mark
        search.report(config.number, 4_000, {"eval/fvu": 0.1})
        search.tell(config.number, "complete", {"eval/fvu": 0.1})
    search.report(2, 8_000, {"eval/fvu": 0.1})  # running
    search.report(3, 8_000, {"eval/fvu": 0.1})
    search.tell(3, "pruned")
    search.report(4, 8_000, {"eval/fvu": 0.1})
    search.tell(4, "failed", {}, "cuda_oom")
    decision = search.report(5, 8_000, {"eval/fvu": 9.0})
    assert decision.verdict == Verdict.GO
    assert (decision.numbers["threshold"], decision.numbers["peers"]) == (None, 0)


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband", "threshold", "pareto"])
def test_nothing_is_stopped_before_the_warm_up_nor_at_the_end(pruner: str, tmp_path: Path) -> None:
    more = {"upper": 0.0} if pruner == "threshold" else {}
    made = plan(pruner, points=30, startup_trials=0, **more)
    assert made.prune_from(made.strata[0]) == 5_000  # lr warm-up ends at 1,000, the dead window at 900
    ends = Counter(map(stopped, sweep(made, tmp_path / "j", shuffled(30))))
    assert all(end is None or 5_000 <= end < SAMPLES for end in ends)
    late = sweep(plan(pruner, points=30, startup_trials=0, warmup=12_000, **more), tmp_path / "late", shuffled(30))
    assert all(end is None or end >= 12_000 for end in map(stopped, late))


@pytest.mark.parametrize("pruner", ["asha", "hyperband"])
@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_rung_keeps_its_best_third_and_its_cut_is_told(pruner: str, direction: str, tmp_path: Path) -> None:
    key = "eval/fvu" if direction == "minimize" else "eval/explained_variance"
    made = plan(pruner, points=60, direction=direction)
    found = sweep(made, tmp_path / "j", shuffled(60), key)
    assert made.rungs(made.strata[0]) == (5_000, 15_000)
    judged = [d for decisions in found for d in decisions if d.numbers.get("rung") is not None]
    assert {d.numbers["samples"] for d in judged} == {5_000, 15_000}
    for d in judged:
        worse = d.numbers["value"] > d.numbers["threshold"]
        if direction == "maximize":
            worse = d.numbers["value"] < d.numbers["threshold"]
        assert (d.verdict == Verdict.PRUNE) == worse
    assert all(d.numbers["rung"] is not None for decisions in found for d in decisions if d.verdict == Verdict.PRUNE)
    share = sum(stopped(decisions) is None for decisions in found) / 60
    assert 1 / 60 <= share < 0.5
    assert judged[0].numbers["peers"] == 0
    if pruner == "asha":
        first = [d for d in judged if d.numbers["rung"] == 0]
        assert [d.numbers["peers"] for d in first] == list(range(60))
        assert 0.2 < sum(d.verdict == Verdict.GO for d in first) / 60 < 0.6


def test_hyperband_says_the_bracket(tmp_path: Path) -> None:
    found = sweep(plan("hyperband", points=40), tmp_path / "j", shuffled(40))
    brackets = {d.numbers["bracket"] for decisions in found for d in decisions if "bracket" in d.numbers}
    assert brackets == {0, 1}


def test_threshold_stops_outside_its_bounds(tmp_path: Path) -> None:
    low, inside, high = sweep(plan("threshold", lower=0.1, upper=0.5), tmp_path / "j", [0.05, 0.3, 0.6])
    assert [stopped(d) for d in (low, inside, high)] == [5_000, None, 5_000]
    assert [d[-1].numbers["threshold"] for d in (low, high)] == [0.1, 0.5]
    assert inside[6].numbers["threshold"] == 0.5


def test_a_mark_passed_by_a_few_examples_counts_as_the_mark(tmp_path: Path) -> None:
    search = Search(plan("median"), tmp_path / "j")
    for extra in (0, 40, 99):
        config = search.ask()
        assert config is not None
        search.report(config.number, 6_000 + extra, {"eval/fvu": 0.1})
        search.tell(config.number, "complete", {"eval/fvu": 0.1})
    search.ask()
    decision = search.report(3, 6_050, {"eval/fvu": 0.2})
    assert (decision.verdict, decision.numbers["peers"], decision.numbers["samples"]) == (Verdict.PRUNE, 3, 6_050)


def test_a_best_value_of_the_past_protects_as_optuna_has_it(tmp_path: Path) -> None:
    """MedianPruner lets the best value so far meet the median; the numbers say both."""
    search = Search(plan("median"), tmp_path / "j")
    for _ in range(2):
        config = search.ask()
        assert config is not None
        for samples in (6_000, 7_000):
            search.report(config.number, samples, {"eval/fvu": 0.2})
        search.tell(config.number, "complete", {"eval/fvu": 0.2})
    search.ask()
    search.report(2, 6_000, {"eval/fvu": 0.1})
    decision = search.report(2, 7_000, {"eval/fvu": 0.9})
    assert decision.verdict == Verdict.GO
    assert (decision.numbers["value"], decision.numbers["best"], decision.numbers["threshold"]) == (0.9, 0.1, 0.2)


@pytest.mark.parametrize("pruner", ["median", "asha", "hyperband", "pareto"])
@pytest.mark.parametrize("reopened", [False, True], ids=["one scheduler", "after a restart"])
def test_verdicts_after_a_retry_are_those_without_it(pruner: str, reopened: bool, tmp_path: Path) -> None:
    """Trials 1, 4, 9 and 14 run out of memory halfway, after verdicts, and are tried again at once."""
    made, levels, found = plan(pruner, points=30, reduction_factor=2, margin=0.02), shuffled(30, seed=3), []
    for retried in (frozenset[int](), frozenset({1, 4, 9, 14})):
        journal = tmp_path / f"{len(retried)}"
        search, decisions = Search(made, journal), []
        for number, level in enumerate(levels):
            config = search.ask()
            assert config is not None
            for samples in MARKS:
                if samples == 11_000 and number in retried:
                    search.tell(number, "failed", {}, "cuda_oom")
                    assert search.reopen(number) == config
                    search = Search(made, journal) if reopened else search
                value = level * (1 + 1_000 / samples)
                said = search.report(number, samples, {"eval/fvu": value, "eval/l0": 20 + 100 * abs(level - 0.3)})
                decisions.append(said)
                if said.verdict == Verdict.PRUNE:
                    search.tell(number, "pruned")
                    break
            else:
                search.tell(number, "complete", {"eval/fvu": level})
        found.append(decisions)
    assert found[0] == found[1]
    assert {d.verdict for d in found[0]} == {Verdict.GO, Verdict.PRUNE}


# --- like with like --------------------------------------------------------------------------------------------------


def test_a_sparse_stratum_is_not_stopped_for_being_sparse(tmp_path: Path) -> None:
    """k=16 reconstructs worse than k=64 whatever the learning rate; one study over both would stop nearly all of it."""
    made = plan("median", points=12, k=(16, 64))
    search, rng = Search(made, tmp_path / "j"), random.Random(0)
    alone = optuna.create_study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=5_000))
    ours, theirs = Counter[int](), Counter[int]()
    for _ in range(24):
        config = search.ask()
        assert config is not None
        k = config.sae.k  # type: ignore[union-attr]
        level = {16: 0.4, 64: 0.2}[k] * (1 + 0.2 * rng.random())
        ours[k] += stopped(train(search, config, level)) is not None
        trial = alone.ask()
        for samples in MARKS[:-1]:
            trial.report(level * (1 + 1_000 / samples), samples)
            if trial.should_prune():
                alone.tell(trial, state=optuna.trial.TrialState.PRUNED)
                theirs[k] += 1
                break
        else:
            alone.tell(trial, level)
    assert 2 <= ours[16] <= 9
    assert 2 <= ours[64] <= 9
    assert theirs[16] >= 10


# --- pareto ----------------------------------------------------------------------------------------------------------


def run_pareto(pruner: ParetoPruner, curves: list[dict[int, tuple[float, float]]]) -> list[int | None]:
    """Plain Optuna: each trial reports its pairs in order; the step at which it was stopped."""
    ends: list[int | None] = []

    def objective(trial: optuna.Trial) -> float:
        for step, (l0, fvu) in curves[trial.number].items():
            report_pair(trial, step, l0, fvu)
            if trial.should_prune():
                ends.append(step)
                raise optuna.TrialPruned
        ends.append(None)
        return fvu

    study = optuna.create_study(pruner=pruner)
    study.optimize(objective, n_trials=len(curves))
    return ends


def test_pareto_stops_in_plain_optuna_only_what_is_worse_in_both() -> None:
    curves = [
        {1: (20.0, 0.5), 2: (20.0, 0.4)},
        {1: (30.0, 0.6), 2: (30.0, 0.5)},  # more latents and more error
        {1: (10.0, 0.9), 2: (10.0, 0.8)},  # sparser
        {1: (99.0, 0.2), 2: (99.0, 0.1)},  # better reconstruction
    ]
    assert run_pareto(ParetoPruner(), curves) == [None, 1, None, None]


def test_pareto_asks_for_the_margin_in_both() -> None:
    better = {1: (20.0, 0.50)}
    assert run_pareto(ParetoPruner(0.05), [better, {1: (22.0, 0.53)}]) == [None, 1]  # 20 < 20.9, 0.50 < 0.5035
    assert run_pareto(ParetoPruner(0.05), [better, {1: (22.0, 0.52)}]) == [None, None]  # 0.50 > 0.494
    assert run_pareto(ParetoPruner(0.05), [better, {1: (21.0, 0.60)}]) == [None, None]  # 20 > 19.95
    assert run_pareto(ParetoPruner(0.0), [better, better]) == [None, None]


def test_pareto_compares_at_the_same_step_and_after_the_warm_up() -> None:
    late = [{5: (20.0, 0.1)}, {1: (30.0, 0.9), 4: (30.0, 0.9), 5: (30.0, 0.9)}]
    assert run_pareto(ParetoPruner(), late) == [None, 5]
    assert run_pareto(ParetoPruner(n_warmup_steps=6), late) == [None, None]


def test_pareto_never_stops_the_front_whatever_the_order() -> None:
    rng = random.Random(1)
    for _ in range(20):
        points = [(rng.uniform(5, 50), rng.uniform(0.1, 1)) for _ in range(15)]
        ends = run_pareto(ParetoPruner(0.02), [{1: p} for p in points])
        front = [not any(q[0] < p[0] and q[1] < p[1] for q in points) for p in points]
        assert not any(end is not None for end, best in zip(ends, front, strict=True) if best)


def test_pareto_takes_running_and_stopped_trials_for_rivals_but_not_failed_or_infeasible_ones() -> None:
    study = optuna.create_study(pruner=ParetoPruner())
    good, bad = (10.0, 0.1), (20.0, 0.5)

    def judged(end: str) -> bool:
        rival, trial = study.ask(), study.ask()
        report_pair(rival, study.trials[-1].number, *good)
        if end == "infeasible":
            rival.set_constraint("cuda_oom", 1.0)
        if end != "running":
            state = {"failed": optuna.trial.TrialState.FAIL}.get(end, optuna.trial.TrialState.PRUNED)
            study.tell(rival, state=state)
        report_pair(trial, trial.number, *bad)
        return trial.should_prune()

    assert {end: judged(end) for end in ("running", "pruned", "failed", "infeasible")} == {
        "running": True, "pruned": True, "failed": False, "infeasible": False,
    }  # fmt: skip


@pytest.mark.parametrize(("margin", "warmup"), [(-0.1, 0), (1.0, 0), (0.1, -1)])
def test_pareto_refuses_what_makes_no_sense(margin: float, warmup: int) -> None:
    with pytest.raises(ValueError, match="must"):
        ParetoPruner(margin, warmup)


def test_pareto_in_a_sweep_names_the_rival(tmp_path: Path) -> None:
    search = Search(plan("pareto", margin=0.1), tmp_path / "j")
    for _ in range(3):
        search.ask()
    search.report(0, 6_000, {"eval/fvu": 0.2, "eval/l0": 30.0})
    search.report(1, 6_000, {"eval/fvu": 0.3, "eval/l0": 20.0})
    decision = search.report(2, 6_000, {"eval/fvu": 0.5, "eval/l0": 40.0})
    assert decision.verdict == Verdict.PRUNE
    numbers = decision.numbers
    assert (numbers["rival"], numbers["rival_l0"], numbers["l0"], numbers["peers"]) == (0, 30.0, 40.0, 2)
    assert numbers["threshold"] == pytest.approx(0.2 / 0.9)


def test_every_pruner_of_a_spec_is_one_row() -> None:
    names = get_args(PruneConfig.model_fields["pruner"].annotation)
    assert tuple(PRUNERS) == names
    kinds = [row.kind for row in PRUNERS.values()]
    assert len(set(kinds)) == len(kinds), "a pruner is recognised by its class"
