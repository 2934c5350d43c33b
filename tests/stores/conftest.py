"""Fixtures of the stores' tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets  # noqa: F401 - before threads import it side by side
import pytest
from corpora import HashModel, ThreadChild, write_jsonl, write_static_model
from transformers import PreTrainedTokenizerBase  # noqa: F401 - likewise

from saebench.config import DataConfig, DatasetConfig
from saebench.stores import (
    build,
    build_checks,
    child_process,
    encoder_pool,
    encoder_process,
    entry,
    pieces,
    reader_process,
    rows,
    sentence_encoder,
)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds run in threads of this process."""
    monkeypatch.setattr(child_process, "start", ThreadChild)


@pytest.fixture
def inline(threads: None, monkeypatch: pytest.MonkeyPatch) -> HashModel:  # noqa: ARG001 - one upon the other
    """Builds run in threads of this process, with this model under whatever name is asked for."""
    model = HashModel()
    monkeypatch.setattr(sentence_encoder, "_load", lambda _data, _device: model)
    monkeypatch.setattr(encoder_pool, "find_model", lambda name, _revision: (name, False))
    return model


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., DataConfig]:
    """A DataConfig over JSON lines of the given rows."""

    def make(rows: Sequence[Any], name: str = "t.jsonl", **changes: Any) -> DataConfig:
        path = write_jsonl(tmp_path / name, rows)
        dataset = {"path": "json", "data_files": str(path), **changes.pop("dataset", {})}
        return DataConfig(
            **{"model": "hash-model", "num_examples": 1_000_000, **changes}, dataset=DatasetConfig(**dataset)
        )

    return make


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of 64 rows in pieces of 16, so that a few hundred texts make many files."""
    for module in (build, build_checks, encoder_process, encoder_pool, entry, pieces, reader_process, rows):
        for name, value in {"ROWS_PER_SHARD": 64, "ROWS_PER_PART": 16}.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="session")
def static_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A real SentenceTransformer folder that encodes thousands of texts a second: a table of word vectors."""
    return write_static_model(tmp_path_factory.mktemp("static") / "model")
