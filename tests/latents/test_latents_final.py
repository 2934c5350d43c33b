"""Scores of latents as final metrics of a trial."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from latents.planted import PlantedModel, planted_sae

from saebench.config import DataConfig, TrialConfig
from saebench.errors import DataError, SpecError
from saebench.latents import analyse
from saebench.latents.corpus import Part, texts_of
from saebench.latents.final import ENTRIES, final_scores
from saebench.latents.floors import FLOORS
from saebench.latents.second import CircularError, rows_by_text, second_data
from saebench.latents.seeds import judged_with_seeds
from saebench.metrics import METRICS, extra_metrics, metric_of
from saebench.runs.paths import TrialPaths, cache_dir
from saebench.spec import load_spec
from saebench.stores import cache, open_store
from saebench.sweep import run_sweep
from saebench.trial.evaluation import evaluate


def test_the_last_evaluation_has_the_scores_with_their_floors(config: TrialConfig, trial: TrialPaths) -> None:
    """On the test part they are those of `saebench latents --table scores`; on the validation part others."""
    store = open_store(config.data, batch_size=64, seed=0, device="cpu", cache_dir=cache_dir())
    values = evaluate(planted_sae(), store, ("coherence", "label_match"), "test").values
    judged = judged_with_seeds(analyse(trial.root), None, circular=False)[0]
    for score, value in judged.values["sae"].items():
        assert values[f"test/{score}"] == pytest.approx(value)
        floors = [judged.values[name][score] for name in FLOORS]
        assert [values[f"test/{score}_{name}"] for name in FLOORS] == pytest.approx(floors)
        assert values[f"test/{score}_above_floor"] == pytest.approx(value - max(floors))
    other = evaluate(planted_sae(), store, ("coherence",)).values
    assert "eval/coherence_above_floor" in other
    assert not any("label_" in key for key in other)
    assert other["eval/coherence"] != values["test/coherence"]
    assert not any("coherence" in key for key in evaluate(planted_sae(), store).values)


def test_the_table_of_metrics_knows_a_score_only_above_its_floor() -> None:
    for entry in ENTRIES:
        assert set(extra_metrics(entry)) == {f"{score}_above_floor" for score in ENTRIES[entry]}
    assert metric_of("test/coherence") is None
    assert METRICS["coherence_above_floor"].direction == "maximize"


def test_without_the_cache_there_are_none() -> None:
    assert final_scores(planted_sae(), None, "test", ("coherence",)) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cache": False}, r"eval.metrics.*needs the texts in the cache"),
        ({"dataset": {"path": "fancyzhx/ag_news"}}, r"eval.metrics.*label_column"),
    ],
)
def test_a_spec_that_cannot_have_them_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    dataset = {"path": "fancyzhx/ag_news", "label_column": "label"}
    spec = {
        "name": "x",
        "data": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dataset": dataset, "num_examples": 1000} | change,
        "sae": [{"type": "topk", "k": 8, "expansion_factor": 2}],
        "train": {"samples": 1000},
        "eval": {"metrics": ["coherence", "label_match"]},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecError, match=said):
        load_spec(tmp_path / "x.yaml")


def test_a_second_encoder_judges_a_trial_as_the_command_does(config: TrialConfig, trial: TrialPaths) -> None:
    """`test/example_auroc` is the score of `saebench latents --second`; texts are found by their hash."""
    store = open_store(config.data, batch_size=64, seed=0, device="cpu", cache_dir=cache_dir())
    second = cache.build(second_data(config.data, "second"), cache_dir())
    values = evaluate(planted_sae(), store, ("example_auroc",), "test", second).values
    judged = judged_with_seeds(analyse(trial.root), "second", circular=False)[0]
    assert values["test/example_auroc"] == pytest.approx(judged.values["sae"]["example_auroc"])
    floors = [judged.values[name]["example_auroc"] for name in FLOORS]
    assert values["test/example_auroc_above_floor"] == pytest.approx(values["test/example_auroc"] - max(floors))
    without = evaluate(planted_sae(), store, ("example_auroc", "label_match"), "test")
    assert without.left_out["example_auroc"] == "the second encoder's embeddings are not in the cache"
    assert "test/label_auroc" in without.values  # one score that cannot be had costs no other


def test_rows_of_the_second_encoder_are_those_of_the_same_texts(config: TrialConfig) -> None:
    entry = cache.build(config.data, cache_dir())
    part = Part("test", entry, entry.test_index[::-1].copy())
    second = cache.build(second_data(config.data, "second"), cache_dir())
    model = PlantedModel(words=True)
    expected = [model.row(text) for text in texts_of(entry, entry.test_index)][::-1]
    np.testing.assert_allclose(rows_by_text(part, second, "x"), np.stack(expected), rtol=1e-5)
    fewer = config.data.model_copy(update={"num_examples": 700, "model": "second"})
    with pytest.raises(
        DataError, match=r"x: .* of the texts are no longer in the data set; restore it, or run the sweep again"
    ):
        rows_by_text(part, cache.build(fewer, cache_dir()), "x")


def swept(data: DataConfig, tmp_path: Path, second: str, **more: Any) -> dict[str, float]:
    """A sweep of one trial in this process; its last record."""
    spec = {
        "name": "judged",
        "data": data.model_dump(include={"model", "num_examples", "holdout"})
        | {"dataset": data.dataset.model_dump(exclude_none=True)},
        "sae": [{"type": "topk", "k": 2, "dict_size": 24}],
        "train": {"samples": 4096, "batch_size": 64},
        "search": {"sampler": "random", "points": 1},
        "eval": {"metrics": ["example_auroc"], "second_encoder": second},
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        "run": {"executor": "in_process"},
    }
    result = run_sweep(spec, runs_dir=tmp_path / "runs", quiet=True, **more)
    assert result.ok
    lines = (result.trial(0) / "events.jsonl").read_text().splitlines()
    done: dict[str, float] = json.loads(lines[-1])["values"]
    return done


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, empty_database: Path) -> None:
    """MLflow's tables are there, and no process computes floors beside the sweep."""
    shutil.copy(empty_database, tmp_path)
    monkeypatch.setattr("saebench.sweep.life.SweepRun._floors", lambda *_: None)


@pytest.mark.usefixtures("_quick")
def test_a_sweep_encodes_the_texts_with_it_before_the_first_trial(data: DataConfig, tmp_path: Path) -> None:
    done = swept(data, tmp_path, "second")
    assert {"test/example_auroc", "test/example_auroc_random", "test/example_auroc_above_floor"} <= done.keys()
    key = json.loads((tmp_path / "runs/judged/lock.json").read_text())["second_key"]
    assert key == cache.build(second_data(data, "second"), cache_dir()).cache_key
    trial_config = json.loads((tmp_path / "runs/judged/trials/0000/config.json").read_text())
    assert (trial_config["second_encoder"], trial_config["second_key"]) == ("second", key)


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", ["planted", "a_copy_of_planted"])
def test_the_encoder_of_the_sweep_does_not_judge_it(data: DataConfig, tmp_path: Path, name: str) -> None:
    """By its name before anything is encoded, a copy by its cosines; with --circular-anyway it does."""
    with pytest.raises(CircularError, match=f"eval.second_encoder: {name}: gives the embeddings that the SAE"):
        swept(data, tmp_path, name)
    assert not (tmp_path / "runs").exists()
    if name == "planted":
        assert "test/example_auroc" in swept(data, tmp_path, name, circular_anyway=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"eval": {"metrics": ["example_auroc"]}},
            r"eval.metrics\[0\].*needs another encoder: set eval.second",
        ),
        ({"eval": {"second_encoder": "x"}}, r"eval.second_encoder: .* is read by example_auroc only"),
    ],
)
def test_a_second_encoder_and_its_score_need_each_other(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    dataset = {"path": "fancyzhx/ag_news"}
    spec = {
        "name": "x",
        "data": {"model": "sentence-transformers/all-MiniLM-L6-v2", "dataset": dataset, "num_examples": 1000},
        "sae": [{"type": "topk", "k": 8, "expansion_factor": 2}],
        "train": {"samples": 1000},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(spec | change))
    with pytest.raises(SpecError, match=said):
        load_spec(tmp_path / "x.yaml")
