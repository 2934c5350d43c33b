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


LONG = [
    "a word or two " * 40_000,
    "Ünïcode und mehr, " * 20_000,
    "\u4e2d\u6587" * 50_000,
    "x" * 100_000,
    "ab" * 100_000 + " end",
    " ".join(sentences(3_000)),
]


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_before_they_are_tokenised_and_nothing_changes(
    minilm: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minilm.tokenizer, "truncation_side", side)
    whole = minilm.preprocess(LONG, prompt=None)
    tokens = Tokens(minilm, None)
    window = tokens(LONG)
    assert_alike(window.features(np.arange(len(LONG))), whole)
    short = [tokens._shortened(text) for text in LONG]
    assert max(len(text) for text in (*short[:3], short[5])) <= 8_192
    assert window.truncated.tolist() == [True, True, True, False, False, True], "a long word is one token"


def test_a_text_of_five_megabytes_takes_no_more_memory_than_its_beginning(minilm: Any) -> None:
    """It took 713 MB. Only what the tokenizer is given counts here."""
    given: list[int] = []

    class Watched:
        def __call__(self, texts: Any, **options: Any) -> Any:
            given.append(len(texts) if isinstance(texts, str) else max(map(len, texts)))
            return minilm.tokenizer(texts, **options)

        def __getattr__(self, name: str) -> Any:
            return getattr(minilm.tokenizer, name)

    tokens = Tokens(minilm, None)
    tokens._tokenizer = lambda: Watched()  # type: ignore[method-assign]
    assert int(tokens(["one word after another " * 220_000]).lengths[0]) == 256
    assert max(given) < 10_000


def test_texts_that_are_cut_at_the_limit_are_counted_and_full_ones_are_not(minilm: Any) -> None:
    """254 words and two tokens of the model's own are its limit of 256."""
    window = Tokens(minilm, None)(["one " * 254, "one " * 255, "one", "one " * 100_000])
    assert window.lengths.tolist() == [256, 256, 3, 256]
    assert window.truncated.tolist() == [False, True, False, True]


def test_a_model_without_a_usual_tokenizer_makes_its_own() -> None:
    model = HashModel()
    window = Tokens(model, None)(["four", "eight by"])
    assert window.lengths.tolist() == [1, 2]
    assert_alike(window.features(np.array([1])), model.preprocess(["eight by"], prompt=None))
