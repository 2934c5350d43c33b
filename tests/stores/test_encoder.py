"""SentenceEncoder gives what SentenceTransformer.encode gives, in less time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from corpora import HashModel, sentences
from torch import Tensor

from saebench.config import DataConfig, DatasetConfig
from saebench.errors import DataError
from saebench.stores import encoder as module
from saebench.stores.encoder import SentenceEncoder

TEXTS = [*sentences(40), "one", "a " * 400, "word"]


def config(**changes: Any) -> DataConfig:
    base = {"model": "sentence-transformers/all-MiniLM-L6-v2", "num_examples": 10, "encode_batch_size": 8}
    return DataConfig(**{**base, **changes}, dataset=DatasetConfig(path="json"))


@pytest.fixture
def encoder(minilm: Any, monkeypatch: pytest.MonkeyPatch) -> SentenceEncoder:
    """The packaged MiniLM, which the whole session shares."""
    monkeypatch.setattr(module, "_load", lambda _data, _device: minilm)
    return SentenceEncoder(config(), "cpu")


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b).min())


def test_rows_are_those_of_the_model_in_the_order_of_the_texts(encoder: SentenceEncoder, minilm: Any) -> None:
    rows = encoder.embed(TEXTS)
    assert (rows.shape, rows.dtype, encoder.d_in) == ((43, 384), torch.float32, 384)
    expected = torch.from_numpy(minilm.encode(TEXTS))
    assert torch.allclose(rows, expected, atol=1e-5)


def test_batches_are_of_similar_length_and_about_the_same_number_of_tokens(encoder: SentenceEncoder) -> None:
    batches = list(encoder.batches(TEXTS))
    lengths = encoder._lengths(TEXTS)
    assert sorted(np.concatenate([index for index, _ in batches]).tolist()) == list(range(len(TEXTS)))
    longest = [int(lengths[index].max()) for index, _ in batches]
    assert longest == sorted(longest, reverse=True)
    budget = 8 * int(np.median(lengths))
    assert lengths.max() == 256, "truncated to the model's limit, which is more than a batch may hold"
    for index, features in batches:
        assert features["input_ids"].shape == (len(index), int(lengths[index].max()))
        assert features["input_ids"].numel() <= budget or len(index) == 1
    computed = sum(features["input_ids"].numel() for _, features in batches)
    assert computed < 1.1 * lengths.sum(), "less than a tenth is padding"


def test_bfloat16_keeps_the_direction(minilm: Any, monkeypatch: pytest.MonkeyPatch, encoder: SentenceEncoder) -> None:
    monkeypatch.setattr(module, "_load", lambda _data, _device: minilm)
    lower = SentenceEncoder(config(precision="bfloat16"), "cpu")
    rows, exact = lower.embed(TEXTS[:20]), encoder.embed(TEXTS[:20])
    assert not torch.equal(rows, exact)
    assert cosine(rows, exact) > 0.9999


def test_prompt_and_limit_reach_the_model(minilm: Any, minilm_path: str) -> None:
    prompted = SentenceEncoder(config(model=minilm_path, prompt="query: ", max_seq_length=16), "cpu")
    assert prompted.info()["max_seq_length"] == 16
    expected = minilm.encode(["query: short"], convert_to_tensor=True)
    assert torch.allclose(prompted.embed(["short"]), expected, atol=1e-5)
    assert int(prompted._lengths(["a " * 400])[0]) == 16
    assert minilm.max_seq_length == 256


def test_normalisation_is_to_length_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_load", lambda _data, _device: HashModel())
    rows = SentenceEncoder(config(normalize=True), "cpu").embed(["a", "b"])
    assert torch.allclose(rows.norm(dim=1), torch.ones(2))
    assert not torch.allclose(SentenceEncoder(config(), "cpu").embed(["a"]).norm(), torch.ones(1))


def test_a_batch_that_does_not_fit_the_gpu_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    class Small(HashModel):
        def preprocess(self, texts: Any, prompt: str | None = None) -> dict[str, Any]:
            rows = super().preprocess(texts, prompt)["rows"]
            return {"rows": rows, "input_ids": rows, "modality": "text"}

        def __call__(self, features: Any) -> dict[str, Any]:
            if len(features["rows"]) > 3:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")
            return super().__call__(features)

    monkeypatch.setattr(module, "_load", lambda _data, _device: Small())
    assert torch.equal(SentenceEncoder(config(), "cpu").embed(TEXTS), HashModel().encode(TEXTS))


def test_a_model_without_a_limit_refuses_one(static_model: str) -> None:
    with pytest.raises(DataError, match="max_seq_length: this model has no such limit"):
        SentenceEncoder(config(model=static_model, max_seq_length=5), "cpu")
