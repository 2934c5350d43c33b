"""A planted corpus in a cache of its own, and trials on it."""

from __future__ import annotations

from pathlib import Path

import datasets  # noqa: F401 - before threads import it side by side
import pytest
from latents.planted import PlantedModel, data_config, planted_sae, texts, trial_config, write_trial
from stores.corpora import ThreadChild
from transformers import PreTrainedTokenizerBase  # noqa: F401 - likewise

from saebench.config import DataConfig, TrialConfig
from saebench.runs.paths import TrialPaths, cache_dir
from saebench.stores import cache, child_process, encoder_pool, sentence_encoder


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding happens in threads of this process; the model called "second" is another one."""
    monkeypatch.setattr(child_process, "start", ThreadChild)
    monkeypatch.setattr(sentence_encoder, "_load", lambda data, _device: PlantedModel(words=data.model == "second"))
    monkeypatch.setattr(encoder_pool, "find_model", lambda name, _revision: (name, False))


@pytest.fixture
def data(models: None, tmp_path: Path) -> DataConfig:  # noqa: ARG001 - it is built with them
    config = data_config(tmp_path, texts(1200))
    cache.build(config, cache_dir())
    return config


@pytest.fixture
def config(data: DataConfig) -> TrialConfig:
    return trial_config(data)


@pytest.fixture
def trial(config: TrialConfig, tmp_path: Path) -> TrialPaths:
    """runs/demo/trials/0000, whose first eight latents are the topics."""
    return write_trial(tmp_path / "runs", config, planted_sae())
