"""CMA-ES without a pickle: the same points however often the sweep is resumed, and better ones as it goes on."""

from __future__ import annotations

import importlib.util
import os
import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution

from saebench.config import TrialConfig
from saebench.errors import SpecError
from saebench.plan import Plan, make_plan
from saebench.spec import parse_spec
from saebench.study import Search
from saebench.study.cma import CmaEs
from saebench.study.units import from_unit, to_unit


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(autouse=True)
def _no_pickle_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a pickle was loaded")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)


def plan(points: int = 20) -> Plan:
    values = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 1000},
        "sae": [{"type": "topk", "k": 16, "dict_size": 256}],
        "train": {
            "samples": 20_000, "batch_size": {"low": 64, "high": 256}, "lr": {"low": 1e-4, "high": 1e-2, "log": True},
        },
        "search": {"sampler": "cmaes", "points": points, "refine": 0},
    }  # fmt: skip
    return make_plan(parse_spec(values), 384)


def finish(search: Search, config: TrialConfig) -> None:
    search.tell(config.number, "complete", {"eval/fvu": (config.train.lr or 0) + config.train.batch_size / 1e5})


def drawn(configs: list[TrialConfig]) -> list[tuple[float | None, int]]:
    return [(config.train.lr, config.train.batch_size) for config in configs]


def test_a_resumed_sweep_draws_what_it_would_have_drawn_and_no_pickle_is_kept_or_loaded(tmp_path: Path) -> None:
    straight, resumed = [], []
    search = Search(plan(), tmp_path / "straight")
    while (config := search.ask()) is not None:
        straight.append(config)
        finish(search, config)
    while (config := (search := Search(plan(), tmp_path / "resumed")).ask()) is not None:
        resumed.append(config)
        finish(search, config)
    assert len(straight) == 20  # three generations of six and two more points
    assert drawn(resumed) == drawn(straight)
    journal = (tmp_path / "resumed").read_text()
    assert "optimizer" not in journal
    assert "80049" not in journal, "the first bytes of a pickle, in hex"


def test_the_order_in_which_trials_end_changes_nothing(tmp_path: Path) -> None:
    following = []
    for name in ("as drawn", "backwards"):
        search = Search(plan(), tmp_path / name)
        first = [config for _ in range(7) if (config := search.ask()) is not None]
        for config in first if name == "as drawn" else first[::-1]:
            finish(search, config)
        following.append(search.ask())
    assert following[0] == following[1]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_points_gather_where_the_objective_is_best(direction: str) -> None:
    study = optuna.create_study(direction=direction, sampler=optuna.samplers.RandomSampler(0))
    sign = 1 if direction == "minimize" else -1
    distances = []
    for number in range(60):
        study.sampler = CmaEs(number)
        trial = study.ask()
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 1e-4, 1, log=True)
        distance = (x - 0.8) ** 2 + (to_unit(FloatDistribution(1e-4, 1, log=True), y) - 0.2) ** 2
        distances.append(distance)
        study.tell(trial, sign * distance)
    assert sum(distances[-12:]) < sum(distances[1:13]) / 10


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(2, 4), [2, 2.5, 4]),
        (FloatDistribution(1e-4, 1e-2, log=True), [1e-4, 1e-3, 1e-2]),
        (FloatDistribution(0.1, 0.7, step=0.2), [0.1, 0.3, 0.5, 0.7]),
        (IntDistribution(3, 6), [3, 4, 5, 6]),
        (IntDistribution(1, 64, log=True), [1, 2, 32, 64]),
    ],
)
def test_a_value_and_its_share_of_the_range_are_the_same_thing(
    distribution: BaseDistribution, values: list[float]
) -> None:
    shares = [to_unit(distribution, value) for value in values]
    assert all(0 <= share <= 1 for share in shares)
    assert shares == sorted(shares)
    back = [from_unit(distribution, share) for share in shares]
    assert back == pytest.approx(values)
    assert all(isinstance(value, int) == isinstance(distribution, IntDistribution) for value in back)
    ends = [from_unit(distribution, share) for share in (0.0, 1.0)]
    assert ends == pytest.approx([values[0], values[-1]])


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SpecError, match=r"search.sampler: cmaes: needs .*pip install 'saebench\[cmaes\]'"):
        Search(plan(), tmp_path / "journal")
