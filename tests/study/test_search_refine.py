"""Strata draw the same points, are refined around the best one, and one point is chosen; nothing of it changes when the
sweep is interrupted anywhere."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from saebench.config import TrialConfig
from saebench.forecast import trials_left
from saebench.plan import Plan, make_plan
from saebench.runs.events import Verdict
from saebench.runs.state import Row
from saebench.spec import parse_spec
from saebench.study import Search, refine
from saebench.study.journal import open_journal
from saebench.study.samplers import shared_point
from saebench.study.stratum_search import StratumSearch, Trial

LR = {"low": 1e-3, "high": 3e-2, "log": True}
BEST = math.log(7e-3)


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def plan(points: int = 4, seeds: tuple[int, ...] = (0, 1, 2), **more: Any) -> Plan:
    values = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 1000},
        "sae": more.pop("sae", [{"type": "topk", "k": 16, "dict_size": 256}]),
        "train": {"samples": 20_000, "batch_size": 128, "lr": LR, **more.pop("train", {})},
        "seeds": list(seeds),
        "search": {"sampler": "qmc", "points": points, **more.pop("search", {})},
        **more,
    }
    return make_plan(parse_spec(values), 384)


def fvu(config: TrialConfig) -> float:
    """A parabola in ln lr with its least value at 7e-3, and a seed's own part."""
    return 0.3 * math.exp(0.07 * (math.log(config.train.lr or 1) - BEST) ** 2 + 0.0001 * config.seed)


def end(search: Search, config: TrialConfig) -> None:
    search.tell(config.number, "complete", {"eval/fvu": fvu(config)})


def run(search: Search) -> list[TrialConfig]:
    found = []
    while (config := search.ask()) is not None:
        found.append(config)
        end(search, config)
    return found


def key(configs: list[TrialConfig]) -> list[tuple[int, str, int]]:
    return [(c.number, c.point, c.seed) for c in configs]


def test_arms_that_search_the_same_range_try_the_same_values(tmp_path: Path) -> None:
    """And an arm with a range of its own tries it beside the shared values."""
    arms = [
        {"type": "topk", "k": [16, 32], "dict_size": 256},
        {"type": "batchtopk", "k": 16, "dict_size": 256},
        {"type": "vanilla", "l1_coeff": 1.0, "dict_size": 256, "sparsity_warmup": {"low": 0.0, "high": 0.5}},
    ]
    made = plan(sae=arms, seeds=(0,), search={"refine": 0})
    by_stratum: dict[str, list[float | None]] = {}
    for config in run(Search(made, tmp_path / "j")):
        by_stratum.setdefault(config.stratum, []).append(config.train.lr)
    assert len(by_stratum) == 4
    assert len({tuple(rates) for rates in by_stratum.values()}) == 1


@pytest.mark.parametrize("sampler", ["qmc", "random", "tpe", "cmaes"])
def test_points_cover_the_range_and_another_seed_draws_others(sampler: str) -> None:
    made, other = (plan(8, search={"sampler": sampler, "seed": seed}) for seed in (0, 1))
    shares = [shared_point(made, made.strata[0], index)["lr"] for index in range(8)]
    assert all(1e-3 <= share <= 3e-2 for share in shares)
    assert shares != [shared_point(other, other.strata[0], index)["lr"] for index in range(8)]
    if sampler != "random":  # eight points of a scrambled sequence: one in each eighth of the range
        assert sorted(int(8 * math.log(s / 1e-3) / math.log(30)) for s in shares) == list(range(8))


def test_refinement_finds_the_optimum_and_the_other_seeds_measure_it(tmp_path: Path) -> None:
    made = plan(4)
    search = Search(made, tmp_path / "j")
    configs = run(search)
    refined = [c for c in configs if search.tags(c.number).get("saebench.refined")]
    assert 1 <= len(refined) <= 4
    chosen = [c for c in configs if search.tags(c.number)["saebench.role"] == "compare"]
    assert [c.seed for c in chosen] == [1, 2]
    assert len({c.point for c in chosen}) == 1
    assert math.log(chosen[0].train.lr or 1) == pytest.approx(BEST, abs=0.05)
    about = json.loads(search.tags(chosen[0].number)["saebench.search_error"])
    assert about["gap"] < 0.001
    assert about == {
        **about, "edge": [], "needed": None, "drawn": 4, "refined": len(refined), "searched": {"lr": [1e-3, 3e-2]},
    }  # fmt: skip
    assert len(configs) == 4 + len(refined) + 2 <= made.n_trials


def test_a_sweep_interrupted_at_any_trial_goes_on_to_the_same_trials(tmp_path: Path) -> None:
    """The scheduler dies after every ask, with the trial running; the next one ends it and goes on."""
    made = plan(4, sae=[{"type": "topk", "k": [16, 32], "dict_size": 256}])
    straight = run(Search(made, tmp_path / "straight"))
    seen: list[TrialConfig] = []
    while True:
        search = Search(made, tmp_path / "killed")
        for config in search.running():
            end(search, config)
        if (config := search.ask()) is None:
            break
        seen.append(config)
    assert key(seen) == key(straight)
    assert Search(made, tmp_path / "killed").done


def test_a_round_of_refinement_that_was_cut_is_completed_as_it_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "BEST", math.log(1.6e-3))
    made = plan(4)
    straight = run(Search(made, tmp_path / "straight"))
    search = Search(made, tmp_path / "killed")
    seen = [config for _ in range(4) if (config := search.ask()) is not None]
    for config in seen:
        end(search, config)
    first = search.ask()
    assert first is not None
    whole = search._trials[first.number].refinement
    assert len(whole) > 1, "a round of one point cannot be cut"
    again = Search(made, tmp_path / "killed")
    end(again, first)
    seen += [first, *run(again)]
    assert key(seen) == key(straight)


def test_the_optimum_at_the_end_of_the_range_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BEST", math.log(6e-2))
    search = Search(plan(4), tmp_path / "j")
    about = json.loads(search.tags(run(search)[-1].number)["saebench.search_error"])
    assert about["edge"] == ["lr"]


def test_refining_trials_and_those_that_compare_are_never_pruned(tmp_path: Path) -> None:
    search = Search(plan(4, prune={"pruner": "median", "startup_trials": 1}), tmp_path / "j")
    verdicts: dict[str, set[Verdict]] = {}
    while (config := search.ask()) is not None:
        tags = search.tags(config.number)
        kind = "refined" if "saebench.refined" in tags else tags["saebench.role"]
        weak = 9.0 if kind != "search" or config.number == 3 else 0.1
        verdicts.setdefault(kind, set()).add(search.report(config.number, 10_000, {"eval/fvu": weak}).verdict)
        end(search, config)
    assert verdicts == {
        "search": {Verdict.GO, Verdict.PRUNE}, "refined": {Verdict.GO}, "compare": {Verdict.GO},
    }  # fmt: skip


def test_a_proposal_whose_trial_was_pruned_moves_towards_the_best_point() -> None:
    """Between 0.692 and 2.769 the middle is 1.385 (on a logarithmic scale). It was pruned, as was the middle of what is
    left, 0.979: next is 0.692 * 4^(1/8)."""
    toy = plan(train={"lr": None, "lr_factor": {"low": 0.25, "high": 4.0, "log": True}})
    found = StratumSearch(toy.strata[0], None, {}, ())  # type: ignore[arg-type]
    best, far = 0.6922995659098493, 2.7691982636393964
    measured = {0.3461497829549246: 0.1763, 0.5810495081362136: 0.169, best: 0.1666, far: 0.2956}
    middle = [1.3845991318196984, 0.9790594353347151]
    for number, factor in enumerate([*measured, *middle]):
        value = measured.get(factor)
        state = "complete" if value else "pruned"
        params = {"lr_factor": factor}
        found.trials[number] = Trial(number, found, None, 0, params, 0, state, value=value)  # type: ignore[arg-type]
        found.points.add(toy.point_id(toy.strata[0], params))
    (proposed,) = refine.propose(toy, found)
    assert proposed["lr_factor"] == pytest.approx(best * (far / best) ** 0.125, rel=1e-6)


def test_a_point_that_was_replaced_and_came_back_makes_the_stratum_no_richer(tmp_path: Path) -> None:
    made = plan(4, seeds=(0,), search={"refine": 0})
    search = Search(made, tmp_path / "j")
    for _ in range(5):
        config = search.ask()
        assert config is not None
        if config.number == 0:
            search.tell(0, "failed", {}, "crash")
        else:
            search.tell(config.number, "complete", {"eval/fvu": 0.5 - 0.1 * config.number})
    assert search.ask() is None
    search.reopen(0)
    search.tell(0, "complete", {"eval/fvu": 0.45})
    (stratum,) = search._searches
    assert [trial.number for trial in stratum.candidates()] == [0, 1, 2, 3], "the fifth point was a replacement"


def test_where_nothing_is_searched_every_seed_compares(tmp_path: Path) -> None:
    search = Search(plan(1, train={"lr": 3e-3}), tmp_path / "j")
    configs = run(search)
    assert [c.seed for c in configs] == [0, 1, 2]
    assert {search.tags(n)["saebench.role"] for n in range(3)} == {"compare"}
    assert {search.tags(n)["saebench.choice"] for n in range(3)} == {"1"}
    assert json.loads(search.tags(0)["saebench.search_error"])["gap"] == 0


def test_a_trial_that_the_journal_lost_is_restored_with_all_that_counts(tmp_path: Path) -> None:
    made = plan(4)
    search = Search(made, tmp_path / "j")
    configs = run(search)
    tags = {c.number: search.tags(c.number) for c in configs}
    empty = Search(made, tmp_path / "empty")
    for config in configs:
        assert empty.restore(config, tags[config.number], {20_000: {"eval/fvu": fvu(config)}})
        end(empty, config)
    assert empty.done, "the same choice, nothing left to run"
    assert {n: empty.tags(n) for n in empty.numbers()} == tags
    stranger = configs[0].model_copy(update={"number": 77, "stratum": "topk-k99-n256"})
    assert not empty.restore(stranger, {}, {})
    changed = configs[0].model_copy(update={"number": 77, "train": configs[0].train.model_copy(update={"warmup": 0.5})})
    assert not empty.restore(changed, {}, {})


def test_what_is_left_is_counted_from_the_trials_that_are_there(tmp_path: Path) -> None:
    made = plan(4, sae=[{"type": "topk", "k": [16, 32], "dict_size": 256}])
    assert trials_left(made, []) == 2 * (4 + 2 + 2)  # points, usual refinements, seeds that compare
    search = Search(made, tmp_path / "j")
    configs = run(search)
    assert search.left() == 0
    rows = [Row(c.stratum, c.seed, "complete", search.tags(c.number)) for c in configs]
    assert trials_left(made, rows) == 0
    first = [row for row in rows if row.seed == 0]
    refined = sum("saebench.refined" in row.search for row in first)
    assert trials_left(made, first) == 2 * 2 + (2 * 2 - refined), "seeds that compare, and usual refinements"


def test_a_journal_of_whole_records_that_are_not_ours_is_set_aside(tmp_path: Path) -> None:
    journal = tmp_path / "j"
    journal.write_text('{"op_code": 4, "worker_id": "x"}\n{"op_code": 99}\n')
    assert len(run(Search(plan(4), journal))) > 6
    assert (tmp_path / "j.damaged").exists()
    open_journal(journal)
