"""Scores of latents as final metrics of a trial."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from latents.planted import planted_sae

from saebench.config import TrialConfig
from saebench.errors import SpecError
from saebench.latents import analyse
from saebench.latents.final import ENTRIES, final_scores
from saebench.latents.floors import FLOORS
from saebench.latents.seeds import judged_with_seeds
from saebench.metrics import METRICS, extra_metrics, metric_of
from saebench.runs.paths import TrialPaths, cache_dir
from saebench.spec import load_spec
from saebench.stores import open_store
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
