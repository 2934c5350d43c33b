"""Which point comes next, and that no crash loses, doubles or renumbers one."""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from saebench.config import TrialConfig
from saebench.errors import SpecError
from saebench.plan import Plan, make_plan
from saebench.runs.events import Verdict
from saebench.spec import parse_spec
from saebench.study import Search
from saebench.study.journal import attach, open_journal
from saebench.study.records import FileRecords, repair_journal

LR = {"low": 1e-4, "high": 1e-2, "log": True}


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record of the journal is synced to the disk; the tests survive a power cut without."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def plan(
    points: int | None = 4, sampler: str = "random", k: Any = (16, 64), seeds: Any = (0,), lr: Any = LR, **more: Any
) -> Plan:
    values = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": list(k) if isinstance(k, tuple) else k, "dict_size": 256}],
        "train": {"samples": 20_000, "batch_size": 128, "lr": lr, **more.pop("train", {})},
        "seeds": list(seeds),
        "search": {"sampler": sampler, "points": points, "refine": 0, **more.pop("search", {})},
        **more,
    }
    return make_plan(parse_spec(values), 384)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "optuna.journal"


def complete(search: Search, config: TrialConfig, value: float | None = None) -> None:
    search.tell(config.number, "complete", {"eval/fvu": config.train.lr or 0.0 if value is None else value})


def run(search: Search, finish: Callable[[Search, TrialConfig], None] = complete) -> list[TrialConfig]:
    """Ask and finish until there is nothing left."""
    found = []
    while (config := search.ask()) is not None:
        found.append(config)
        finish(search, config)
    return found


def drawn(configs: list[TrialConfig]) -> list[tuple[int, str, float | None, int]]:
    return [(c.number, c.stratum, c.train.lr, c.seed) for c in configs]


# --- points ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes"])
def test_every_stratum_gets_its_points_in_turn(sampler: str, journal: Path) -> None:
    train = {"decay": {"low": 0.1, "high": 0.5}}  # CMA-ES needs two dimensions
    search = Search(plan(points=6, sampler=sampler, train=train), journal)
    configs = run(search)
    assert [c.number for c in configs] == list(range(12))
    assert [c.stratum for c in configs[:4]] == ["topk-k16-n256", "topk-k64-n256"] * 2
    assert Counter(c.stratum for c in configs) == {"topk-k16-n256": 6, "topk-k64-n256": 6}
    assert len({c.point for c in configs}) == 12
    assert all(1e-4 <= (c.train.lr or 0) <= 1e-2 for c in configs)
    assert search.done
    assert search.counts() == {"planned": 0, "running": 0, "complete": 12, "pruned": 0, "failed": 0}


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes"])
def test_a_sweep_resumed_after_every_trial_draws_what_it_would_have_drawn(sampler: str, tmp_path: Path) -> None:
    made = plan(points=14, sampler=sampler, k=16, train={"decay": {"low": 0.1, "high": 0.5}})
    straight = run(Search(made, tmp_path / "straight"))
    resumed: list[TrialConfig] = []
    while (config := (search := Search(made, tmp_path / "resumed")).ask()) is not None:
        resumed.append(config)
        complete(search, config)
    assert drawn(resumed) == drawn(straight)
    other = run(
        Search(plan(14, sampler, 16, train={"decay": {"low": 0.1, "high": 0.5}}, search={"seed": 1}), tmp_path / "o")
    )
    assert drawn(other) != drawn(straight)


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe", "cmaes"])
def test_a_sweep_of_another_name_draws_the_same_points(sampler: str, tmp_path: Path) -> None:
    """What is compared with and without pruning must be the same points; the names differ."""
    train = {"decay": {"low": 0.1, "high": 0.5}}
    ours = run(Search(plan(6, sampler, train=train), tmp_path / "ours"))
    other = run(Search(plan(6, sampler, train=train, name="other", prune={"pruner": "none"}), tmp_path / "other"))
    assert drawn(other) == drawn(ours)
    assert {config.sweep for config in other} == {"other"}


def test_a_sweep_of_another_name_replaces_repetitions_by_the_same_points(tmp_path: Path) -> None:
    space = {"lr": [1e-4, 2e-4, 1e-3, 2e-3, 1e-2], "train": {"batch_size": [64, 128, 256]}}
    ours = run(Search(plan(12, "random", **space), tmp_path / "ours"))
    again = Search(plan(12, "random", **space, name="other"), tmp_path / "other")
    assert drawn(run(again)) == drawn(ours)
    assert len({config.point for config in ours if config.sae.k == 16}) == 12  # type: ignore[union-attr]


def test_trials_asked_for_at_once_are_not_the_same_point_again(journal: Path) -> None:
    search = Search(plan(points=30, sampler="tpe", k=16), journal)
    for _ in range(20):
        config = search.ask()
        assert config is not None
        complete(search, config)
    rates = [config.train.lr for _ in range(8) if (config := search.ask()) is not None]
    assert len(set(rates)) == 8


def test_points_is_a_target(journal: Path) -> None:
    assert len(run(Search(plan(points=3), journal))) == 6
    assert run(Search(plan(points=3), journal)) == []
    more = run(Search(plan(points=5), journal))
    assert [c.number for c in more] == [6, 7, 8, 9]
    assert Search(plan(points=2), journal).done


def test_a_grid_is_every_point_once_and_a_failed_one_stays_open(journal: Path) -> None:
    made = plan(None, "grid", lr=[1e-4, 1e-3, 1e-2], train={"batch_size": [64, 128]})

    def finish(search: Search, config: TrialConfig) -> None:
        if config.number == 3:
            search.tell(3, "failed", {}, "crash")
        else:
            complete(search, config)

    configs = run(Search(made, journal), finish)
    assert len({(c.stratum, c.train.lr, c.train.batch_size) for c in configs}) == len(configs) == 12
    search = Search(made, journal)
    assert search.done
    assert search.counts()["failed"] == 1
    again = search.reopen(3)
    assert again == configs[3]
    assert not search.done
    complete(search, again)
    assert Search(made, journal).counts() == {"planned": 0, "running": 0, "complete": 12, "pruned": 0, "failed": 0}


def test_failed_points_are_replaced_up_to_a_quarter(journal: Path) -> None:
    search = Search(plan(points=8, k=16), journal)
    configs = run(search, lambda s, c: s.tell(c.number, "failed", {}, "crash"))
    assert len(configs) == 8 + 2
    assert search.done


def test_a_small_space_is_drawn_without_repetition_until_it_is_empty(journal: Path) -> None:
    made = plan(points=6, k=16, lr=[1e-4, 1e-3, 1e-2], train={"batch_size": [64, 128]})
    configs = run(Search(made, journal), lambda s, c: s.tell(c.number, "failed", {}, "crash"))
    assert len({c.point for c in configs}) == len(configs) == 6
    assert [c.number for c in configs] == list(range(6))


def test_a_space_too_large_to_list_is_drawn_from_again_after_a_repetition(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.study.samplers._SMALL", 0)
    made = plan(points=6, k=16, lr=[1e-4, 1e-3, 1e-2], train={"batch_size": [64, 128]})
    configs = run(Search(made, journal))
    assert len({c.point for c in configs}) == len(configs) == 6
    assert [c.number for c in configs] == list(range(6))


def test_a_space_of_steps_is_drawn_without_repetition(journal: Path) -> None:
    made = plan(points=8, k=16, lr={"low": 0.1, "high": 0.8, "step": 0.1})
    assert sorted(c.train.lr or 0 for c in run(Search(made, journal))) == pytest.approx([i / 10 for i in range(1, 9)])


def test_nothing_to_search_is_one_point_with_every_seed(journal: Path) -> None:
    configs = run(Search(plan(points=None, k=16, lr=1e-3, seeds=(3, 4)), journal))
    assert [(c.number, c.seed) for c in configs] == [(0, 3), (1, 4)]


def test_known_good_points_come_first_in_the_strata_they_belong_to(journal: Path) -> None:
    known = [{"lr": 5e-3, "batch_size": 64}, {"k": 64, "lr": 2e-3}]  # the second leaves batch_size to the sampler
    made = plan(points=3, search={"enqueue": known}, train={"batch_size": [64, 128]})
    configs = run(Search(made, journal))
    by_k = {k: [(c.train.lr, c.train.batch_size) for c in configs if c.sae.k == k] for k in (16, 64)}  # type: ignore[union-attr]
    assert by_k[16][0] == by_k[64][0] == (5e-3, 64)
    assert by_k[64][1][0] == 2e-3
    assert by_k[16][1][0] != 2e-3
    assert len(configs) == 6


def test_cmaes_refuses_choices_with_the_reason(journal: Path) -> None:
    made = plan(k=16)
    object.__setattr__(made.spec.search, "sampler", "cmaes")
    made.strata[0].space["batch_size"] = (64, 128)
    with pytest.raises(SpecError, match="batch_size: cmaes cannot draw from choices"):
        Search(made, journal)


# --- seeds -----------------------------------------------------------------------------------------------------------


def test_the_other_seeds_measure_the_chosen_points_and_are_no_evidence(journal: Path) -> None:
    made = plan(points=2, seeds=(0, 1, 2), search={"sampler": "random"})
    search = Search(made, journal)
    first = [config for _ in range(4) if (config := search.ask()) is not None]
    assert search.ask() is None  # nothing has survived yet
    assert not search.done
    search.tell(0, "complete", {"eval/fvu": 0.5})
    search.tell(1, "pruned")
    search.tell(3, "pruned")
    assert search.ask() is None, "the other stratum has nothing to choose from"
    search.tell(2, "complete", {"eval/fvu": 0.4})
    rest = run(search, lambda s, c: s.tell(c.number, "complete", {"eval/fvu": 0.1}))
    assert [(c.number, c.point, c.seed) for c in rest] == [(4, first[2].point, 1), (5, first[2].point, 2)]
    assert search.tags(0) == {"saebench.role": "search"}
    assert (search.tags(4)["saebench.role"], search.tags(4)["saebench.choice"]) == ("compare", "1")
    storage = open_journal(journal)
    numbers = {
        s.study_name: [
            t.user_attrs["number"] for t in optuna.load_study(study_name=s.study_name, storage=storage).trials
        ]
        for s in storage.get_all_studies()
    }
    assert numbers == {
        "toy/topk-k16-n256": [0, 2],
        "toy/topk-k64-n256": [1, 3],
        "toy/topk-k16-n256/replicates": [4, 5],
    }
    again = Search(made, journal)
    assert again.done
    assert again.counts()["complete"] == 4


def test_replicate_all_runs_the_other_seeds_of_stopped_points_too_but_not_of_failed_ones(journal: Path) -> None:
    search = Search(plan(points=3, k=16, seeds=(0, 1), replicate="all"), journal)
    for end in ("complete", "pruned", "failed"):
        config = search.ask()
        assert config is not None
        search.tell(config.number, end, {"eval/fvu": 0.5}, "diverged" if end == "failed" else None)
    rest = run(search)
    assert [c.seed for c in rest] == [0, 1, 1, 1]  # the replacement, then a replicate of each of the three that ran


def test_replicates_are_never_stopped(journal: Path) -> None:
    made = plan(points=3, k=16, seeds=(0, 1), prune={"pruner": "median"})
    search = Search(made, journal)
    for _ in range(3):
        config = search.ask()
        assert config is not None
        search.report(config.number, 10_000, {"eval/fvu": 0.1})
        complete(search, config, 0.1)
    replicate = search.ask()
    assert replicate is not None
    assert replicate.seed == 1
    decision = search.report(replicate.number, 10_000, {"eval/fvu": 99.0})
    assert (decision.verdict, decision.numbers["pruner"]) == (Verdict.GO, "none")


def test_seeds_added_later_measure_the_same_choice(journal: Path) -> None:
    configs = run(Search(plan(points=2, k=16, seeds=(0, 3)), journal))
    best = min(configs[:2], key=lambda c: c.train.lr or 0)
    search = Search(plan(points=2, k=16, seeds=(0, 3, 7)), journal)
    more = run(search)
    assert [(c.point, c.seed) for c in configs[2:] + more] == [(best.point, 3), (best.point, 7)]
    assert search.tags(more[0].number)["saebench.choice"] == "1"


def test_points_added_later_make_another_choice_that_counts(journal: Path) -> None:
    first = run(Search(plan(points=2, k=16, seeds=(0, 1)), journal))
    search = Search(plan(points=8, k=16, seeds=(0, 1)), journal)
    later = run(search)
    best = min([*first, *later], key=lambda c: c.train.lr or 0)
    assert best.point not in {c.point for c in first}
    assert [(c.point, c.seed) for c in later[6:]] == [(best.point, 1)]
    assert search.tags(later[-1].number)["saebench.choice"] == "2"
    assert Search(plan(points=8, k=16, seeds=(0, 1)), journal).done


# --- ends ------------------------------------------------------------------------------------------------------------


def optuna_trials(journal: Path, name: str = "toy/topk-k16-n256") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=open_journal(journal)).trials


def test_every_end_has_its_state_in_optuna(journal: Path) -> None:
    search = Search(plan(points=6, k=16), journal)
    for end, kind in [
        ("complete", None), ("pruned", None), ("failed", "cuda_oom"), ("failed", "diverged"), ("failed", "crash"),
    ]:  # fmt: skip
        config = search.ask()
        assert config is not None
        search.report(config.number, 5_000, {"eval/fvu": 0.5})
        search.tell(config.number, end, {"eval/fvu": 0.4}, kind, {"threshold": 0.3})  # type: ignore[arg-type]
    found = optuna_trials(journal)
    assert [t.state.name for t in found] == ["COMPLETE", "PRUNED", "PRUNED", "PRUNED", "FAIL"]
    assert [t.constraints for t in found] == [{}, {}, {"cuda_oom": 1.0}, {"diverged": 1.0}, {}]
    assert found[0].value == 0.4
    assert found[1].user_attrs["verdict"] == {"threshold": 0.3}
    assert Search(plan(points=6, k=16), journal).counts() == {
        "planned": 2, "running": 0, "complete": 1, "pruned": 1, "failed": 3,
    }  # fmt: skip


def test_hearing_an_end_twice_changes_nothing(journal: Path) -> None:
    search = Search(plan(points=1, k=16), journal)
    run(search)
    before = journal.read_bytes()
    search.tell(0, "failed", {}, "crash")
    search.tell(0, "complete", {"eval/fvu": 9.0})
    assert journal.read_bytes() == before
    assert search.counts()["complete"] == 1


def test_a_complete_trial_whose_objective_is_no_number_has_diverged(journal: Path) -> None:
    search = Search(plan(points=1, k=16), journal)
    search.ask()
    assert search.report(0, 5_000, {"eval/fvu": float("nan")}).verdict == Verdict.GO
    search.tell(0, "complete", {"eval/fvu": float("nan")})
    assert optuna_trials(journal)[0].constraints == {"diverged": 1.0}
    assert search.counts()["failed"] == 1


def test_a_missing_objective_is_named_with_what_there_is(journal: Path) -> None:
    search = Search(plan(points=1, k=16), journal)
    search.ask()
    with pytest.raises(ValueError, match=r"trial 0: search.objective: eval/fvu: not measured; there are: eval/l0"):
        search.report(0, 5_000, {"eval/l0": 16.0})


def test_only_a_failed_trial_is_reopened_and_it_keeps_what_it_measured(journal: Path) -> None:
    search = Search(plan(points=1, k=16, prune={"pruner": "asha"}), journal)
    config = search.ask()
    assert config is not None
    with pytest.raises(ValueError, match="is running"):
        search.reopen(0)
    search.report(0, 5_000, {"eval/fvu": 0.5})
    search.tell(0, "failed", {}, "cuda_oom")
    assert search.reopen(0) == config
    assert search.counts() == {"planned": 0, "running": 1, "complete": 0, "pruned": 0, "failed": 0}
    search.report(0, 10_000, {"eval/fvu": 0.4})
    assert optuna_trials(journal)[-1].intermediate_values == {5_000: 0.5, 10_000: 0.4}
    again = Search(plan(points=1, k=16, prune={"pruner": "asha"}), journal)
    assert again.running() == [config]
    complete(again, config, 0.3)
    assert Search(plan(points=1, k=16), journal).counts()["complete"] == 1


def oom_share(tell: Callable[[Search, int], None], journal: Path) -> float:
    """Share of the last 40 of 100 points in the half of the space where the memory does not suffice; the objective
    lures there."""
    made = plan(points=100, sampler="tpe", k=16, lr={"low": 0.0001, "high": 1.0})
    search = Search(made, journal)
    inside = []
    for _ in range(100):
        config = search.ask()
        assert config is not None
        rate = config.train.lr or 0.0
        inside.append(rate > 0.5)
        if inside[-1]:
            tell(search, config.number)
        else:
            complete(search, config, 1 - rate)
    return sum(inside[-40:]) / 40


def test_tpe_leaves_the_region_that_runs_out_of_memory_and_would_not_if_told_fail(tmp_path: Path) -> None:
    ours = oom_share(lambda s, n: s.tell(n, "failed", {}, "cuda_oom"), tmp_path / "infeasible")
    naive = oom_share(lambda s, n: s.tell(n, "failed", {}, "crash"), tmp_path / "fail")
    assert ours < 0.6
    assert naive > ours + 0.25


# --- crashes ---------------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The power is cut."""


class Disk:
    """A journal's file, on a machine that stops before record number `left`: of the write that holds it, the records
    before are in the file, and half of it where `how` is "torn". With "power cut" everything is gone that nobody had
    waited for, but for the records that `kept` of them says."""

    def __init__(self, left: int, how: str, kept: float = 0.0) -> None:
        self.inherited, self.how, self.kept = left, how, kept
        self.synced = 0

    def hand_over(self, records: Any) -> None:
        """In place of `FileRecords._hand_over`."""
        lines, path = list(records._unwritten), records._path
        with path.open("ab") as file:
            for line in lines:
                self.inherited -= 1
                if self.inherited == 0:
                    file.write(line[:-7] if self.how == "torn" else b"")
                    file.flush()
                    self.cut(path)
                    raise Crash
                file.write(line)
        records._unwritten.clear()

    def commit(self, records: Any) -> None:
        """In place of `FileRecords.commit`."""
        self.hand_over(records)
        self.synced = records._path.stat().st_size

    def cut(self, path: Path) -> None:
        if self.how == "power cut":
            data = path.read_bytes()
            loose = data[self.synced :].splitlines(keepends=True)
            path.write_bytes(data[: self.synced] + b"".join(loose[: int(self.kept * len(loose))]))


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid"])
@pytest.mark.parametrize("how", ["between", "torn", "power cut"])
def test_a_crash_at_any_record_loses_no_trial_and_reuses_no_number(
    sampler: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = plan(
        None if sampler == "grid" else 2, sampler, seeds=(0, 1),
        lr=[1e-4, 1e-3] if sampler == "grid" else LR,
        search={"enqueue": [] if sampler == "grid" else [{"lr": 5e-3}]}, train={"batch_size": [64, 128]},
    )  # fmt: skip
    n_trials = made.n_points + len(made.strata)  # each point, and the other seed of the chosen ones
    survived = 0
    for crash_at in range(1, 80):
        journal = tmp_path / f"{crash_at}"
        seen: dict[int, TrialConfig] = {}
        disk = Disk(crash_at, how, kept=(crash_at % 3) / 2)
        with monkeypatch.context() as patch:
            patch.setattr(FileRecords, "_hand_over", lambda self, disk=disk: disk.hand_over(self))
            patch.setattr(FileRecords, "commit", lambda self, disk=disk: disk.commit(self))
            try:
                search = Search(made, journal)
                while (config := search.ask()) is not None:
                    search.commit()
                    seen[config.number] = config
                    search.report(config.number, 10_000, {"eval/fvu": 0.5})
                    search.commit()
                    complete(search, config)
                survived += 1
            except Crash:
                pass

        again = Search(made, journal)
        for config in again.running():
            assert seen.setdefault(config.number, config) == config
            complete(again, config)
        for config in run(again):
            assert config.number not in seen, "a number was given twice"
            seen[config.number] = config
        assert again.done
        assert sorted(seen) == list(range(n_trials))
        assert len({(c.stratum, c.point, c.seed) for c in seen.values()}) == n_trials
        if survived:
            break
    assert survived, "the sweep has more records than crashes were tried"


def test_a_trial_without_a_number_is_drawn_as_if_none_had_been_tried_again(tmp_path: Path) -> None:
    """Optuna has counted the second attempt; a scheduler that lived on would not have."""
    made = plan(14, "tpe", k=16)
    expected = run(Search(made, tmp_path / "straight"))
    search = Search(made, tmp_path / "killed")
    for _ in range(11):
        config = search.ask()
        assert config is not None
        search.tell(config.number, "failed", {}, "crash")
        complete(search, search.reopen(config.number))
    search._searches[0].study.ask()  # and killed before it had params or a number
    again = Search(made, tmp_path / "killed")
    [left] = again.running()
    assert drawn([left]) == drawn(expected[11:12])
    complete(again, left)
    assert drawn(run(again)) == drawn(expected[12:])


def test_a_mark_in_the_journal_is_not_judged_again(journal: Path) -> None:
    """state.json tells nothing about a mark that was judged as GO; a resumed scheduler replays it from events.jsonl."""
    made = plan(8, k=16, prune={"pruner": "median", "startup_trials": 2})
    search = Search(made, journal)
    first, second, early, weak = (config for _ in range(4) if (config := search.ask()) is not None)
    assert search.report(early.number, 10_000, {"eval/fvu": 0.9}).verdict == Verdict.GO, "it has no peers yet"
    for config in (first, second):
        for samples in (10_000, 15_000):
            search.report(config.number, samples, {"eval/fvu": 0.3})
        complete(search, config, 0.2)
    decision = search.report(weak.number, 10_000, {"eval/fvu": 0.9})
    assert decision.verdict == Verdict.PRUNE
    again = Search(made, journal)  # killed before state.json was written
    assert again.report(weak.number, 10_000, {"eval/fvu": 0.9}) == decision
    assert again.report(early.number, 10_000, {"eval/fvu": 0.9}).verdict == Verdict.GO
    assert again.report(early.number, 15_000, {"eval/fvu": 0.9}).verdict == Verdict.PRUNE, "a new mark is judged"


def test_nobody_waits_for_the_disk_but_for_what_no_one_else_knows(
    journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: waits.append(journal.stat().st_size))
    search = Search(plan(points=3, k=16, prune={"pruner": "asha"}), journal)
    waits.clear()
    for _ in range(3):
        config = search.ask()
        assert config is not None
        search.commit()
        assert waits == [journal.stat().st_size], "a trial that is handed out is on the disk, whole"
        search.report(config.number, 10_000, {"eval/fvu": 0.5})
        search.commit()
        assert waits[1:] == [journal.stat().st_size], "so is an evaluation with its verdict: peers are compared with it"
        complete(search, config)
        assert len(waits) == 2, "an end is in state.json before it is told"
        assert Search(plan(points=3, k=16), journal).counts()["running"] == 0, "but a kill does not lose it"
        waits.clear()


def test_a_full_disk_leaves_whole_records(journal: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = plan(points=2, k=16)
    search = Search(made, journal)
    before = journal.read_bytes()
    real = io.FileIO.write

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            return real(self, data[: len(data) // 2])

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode, **_: Full(self, mode.replace("b", "")))
        with pytest.raises(OSError, match="is the disk full"):
            search.ask()
    assert journal.read_bytes() == before
    assert len(run(Search(made, journal))) == 2


def test_a_torn_tail_and_lines_that_are_no_records_are_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "journal"
    good = b'{"op_code": 0}\n{"op_code": 1}\n'
    lost = b"\0" * 40 + b'"}\n{"op_code": 3}\n'  # a block in the middle that never reached the disk
    for tail in (b"", b'{"op', b'{"op_code": 2}', b"\0\0\0\n", b"\0\0\n[]\n\0", b"7\n", lost):
        file.write_bytes(good + tail)
        repair_journal(file)
        assert file.read_bytes() == good
    file.write_bytes(b"\0\0\n")
    repair_journal(file)
    assert file.read_bytes() == b""


def test_a_lock_left_by_a_killed_process_costs_no_time(journal: Path) -> None:
    run(Search(plan(points=1), journal))
    Path(f"{journal}.lock").touch()
    begin = time.monotonic()
    assert Search(plan(points=1), journal).done
    run(Search(plan(points=2), journal))
    assert time.monotonic() - begin < 5


def test_a_relative_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(run(Search(plan(points=1), Path("a/b/journal")))) == 2


def test_trials_of_a_dead_scheduler_are_running_and_can_be_judged(journal: Path) -> None:
    made = plan(points=4, k=16, prune={"pruner": "median"})
    dead = Search(made, journal)
    configs = [config for _ in range(4) if (config := dead.ask()) is not None]
    for config in configs:
        dead.report(config.number, 5_000, {"eval/fvu": 0.5})
    again = Search(made, journal)
    assert again.running() == configs
    for config in configs[:3]:
        again.report(config.number, 10_000, {"eval/fvu": 0.1})
        complete(again, config, 0.1)
    assert again.report(3, 5_000, {"eval/fvu": 77.0}).verdict == Verdict.GO  # heard before: the record stays
    decision = again.report(3, 10_000, {"eval/fvu": 0.9})
    assert (decision.verdict, decision.numbers["threshold"], decision.numbers["peers"]) == (Verdict.PRUNE, 0.1, 3)
    assert [c.number for c in again.running()] == [3]


def test_what_is_relied_on_when_a_trial_is_attached(tmp_path: Path) -> None:
    """Optuna calls Trial's constructor "not recommended"; this says that it still does what we need of it."""
    study = optuna.create_study(
        storage=open_journal(tmp_path / "j"),
        study_name="s",
        pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=5),
    )
    before = study.ask()
    value = before.suggest_float("x", 0, 1)
    before.set_user_attr("number", 7)
    before.report(0.5, 5)
    assert not before.should_prune()

    later = optuna.load_study(study_name="s", storage=open_journal(tmp_path / "j"), pruner=study.pruner)
    trial = attach(later, before._trial_id)
    assert trial.suggest_float("x", 0, 1) == value
    assert trial.user_attrs == {"number": 7}
    assert trial.suggest_float("y", 0, 1) is not None
    trial.report(0.4, 20)
    assert not trial.should_prune()
    trial.set_constraint("cuda_oom", 1.0)
    later.tell(trial, state=TrialState.PRUNED)
    (frozen,) = later.trials
    assert frozen.intermediate_values == {5: 0.5, 20: 0.4}
    assert {"completed_rung_0", "completed_rung_1"} <= frozen.system_attrs.keys()
    assert frozen.constraints == {"cuda_oom": 1.0}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lr": {**LR, "high": 2e-2}}, r"topk-k16-n256: lr: was \{.*0.01.*\} when the sweep began and is \{.*0.02"),
        ({"train": {"batch_size": 256}}, "topk-k16-n256: batch_size: was 128 when the sweep began and is 256 now"),
        ({"train": {"beta1": 0.8}}, "topk-k16-n256: beta1: was null when the sweep began and is 0.8 now"),
        ({"search": {"objective": "eval/mse"}}, "objective: was \"eval/fvu\""),
        ({"k": (16, 32)}, "toy/topk-k64-n256: the sweep has trials of this stratum, which the spec no longer has"),
    ],
)  # fmt: skip
def test_a_changed_space_is_refused_by_name(change: dict[str, Any], said: str, journal: Path) -> None:
    run(Search(plan(points=1), journal))
    with pytest.raises(SpecError, match=said):
        Search(plan(points=1, **change), journal)


def test_a_new_stratum_joins(journal: Path) -> None:
    run(Search(plan(points=1), journal))
    assert [c.stratum for c in run(Search(plan(points=1, k=(16, 32, 64)), journal))] == ["topk-k32-n256"]


# --- cost ------------------------------------------------------------------------------------------------------------


def test_a_thousand_trials_are_all_there_when_the_journal_is_opened_again(journal: Path) -> None:
    made = plan(points=50, k=tuple(range(8, 28)))
    search = Search(made, journal)
    for _ in range(1000):
        config = search.ask()
        assert config is not None
        complete(search, config)
    assert search.done
    assert Search(made, journal).counts()["complete"] == 1000
