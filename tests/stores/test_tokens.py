"""Features made from tokens at hand are those that SentenceTransformer makes, or are left to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from corpora import HashModel, sentences
from torch import Tensor

from saebench.stores.tokens import Tokens

TEXTS = [
    *sentences(30),
    "one",
    "a " * 400,
    "  Ünïcode\n\tund MEHR  ",
    "\u200b",
    "x" * 3000,
    "[MASK] [SEP]",
    "emoji 🙂🙂",
]


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if isinstance(value, Tensor):
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value), name
        else:
            assert ours[name] == value


@pytest.mark.parametrize("prompt", [None, "query: "])
def test_features_are_those_of_the_model(minilm: Any, prompt: str | None) -> None:
    tokens = Tokens(minilm, prompt)
    assert tokens._like is not None, "the fast way is not taken"
    window = tokens(TEXTS)
    for index in (np.arange(len(TEXTS)), np.array([3]), np.array([33, 2, 30])):
        theirs = minilm.preprocess([TEXTS[i] for i in index], prompt=prompt)
        assert_alike(window.features(index), theirs)
        assert theirs["input_ids"].shape[1] == window.lengths[index].max()


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_where_the_tokenizer_puts_it(minilm: Any, side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm.tokenizer, "padding_side", side)
    tokens = Tokens(minilm, None)
    assert tokens._like is not None
    index = np.arange(5)
    assert_alike(tokens(TEXTS).features(index), minilm.preprocess(TEXTS[:5], prompt=None))


@pytest.mark.parametrize(
    "habit",
    [
        lambda features: features | {"input_ids": features["input_ids"] + 1},
        lambda features: features | {"attention_mask": features["attention_mask"].int()},
        lambda features: features | {"token_type_ids": torch.ones_like(features["input_ids"])},
        lambda features: features | {"position_ids": torch.zeros_like(features["input_ids"])},
        lambda features: features | {"texts": ["one for each text"]},
    ],
)
def test_a_model_that_does_more_than_pad_makes_its_own(minilm: Any, habit: Any) -> None:
    class Other:
        tokenizer, max_seq_length = minilm.tokenizer, minilm.max_seq_length

        def preprocess(self, texts: list[str], prompt: str | None = None) -> dict[str, Any]:
            features: dict[str, Any] = habit(dict(minilm.preprocess(texts, prompt=prompt)))
            return features

    tokens = Tokens(Other(), None)
    assert tokens._like is None
    index = np.array([2, 0])
    assert_alike(tokens(TEXTS).features(index), Other().preprocess([TEXTS[2], TEXTS[0]]))


def test_a_model_without_a_usual_tokenizer_makes_its_own() -> None:
    model = HashModel()
    window = Tokens(model, None)(["four", "eight by"])
    assert window.lengths.tolist() == [1, 2]
    assert_alike(window.features(np.array([1])), model.preprocess(["eight by"], prompt=None))
