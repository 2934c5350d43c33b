"""Texts to a model's features, each text tokenised once.

SentenceTransformer tokenises and pads a batch at a time, and sorting by length needs the tokens before. Where a model's
features are its tokens, padded, and nothing else, which is tried out once, they are made here from tokens at hand: a
third of the time, and on a GPU it is tokens that the device waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Index = npt.NDArray[np.int64]
PROBE = ["What does one row hold?", "  Two\tLines,\nÄpfel und ¿por qué?  ", "a", "word " * 3000, "Z" * 20_000]
"""Case, space, other letters, and texts that every model cuts."""


@dataclass(frozen=True)
class Tokenised:
    """Texts of a window."""

    lengths: Index
    """Tokens of each after truncation; where the model has no usual tokenizer, a quarter of the characters."""
    features: Callable[[Index], dict[str, Any]]
    """What the model takes for the texts at these positions, padded to the longest."""


class Tokens:
    """Tokenises for one SentenceTransformer; `prompt` is put before every text."""

    def __init__(self, model: Any, prompt: str | None) -> None:
        self._model, self._prompt = model, prompt
        self._like = self._padded_tokens()

    def __call__(self, texts: Sequence[str]) -> Tokenised:
        ids = self._ids(texts if self._like is None else [(self._prompt or "") + text for text in texts])
        lengths = np.array([len(one) for one in ids] if ids else [len(text) // 4 for text in texts], np.int64)
        if ids is None or self._like is None:
            return Tokenised(lengths, lambda index: self._preprocess([texts[i] for i in index]))
        like, tokens = self._like, ids
        return Tokenised(lengths, lambda index: self._pad([tokens[i] for i in index], like))

    def _preprocess(self, texts: Sequence[str]) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess(texts, prompt=self._prompt)
        return features

    def _ids(self, texts: Sequence[str]) -> list[list[int]] | None:
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self._model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return None
        limit = self._model.max_seq_length
        found: list[list[int]] = tokenizer(
            list(texts),
            truncation=limit is not None,
            max_length=limit,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        return found

    def _pad(self, ids: Sequence[Sequence[int]], like: dict[str, Any]) -> dict[str, Any]:
        """Features as in `like`, for other tokens."""
        lengths = np.array([len(one) for one in ids])
        place = np.arange(lengths.max())
        held = place < lengths[:, None]
        if self._model.tokenizer.padding_side == "left":
            held = held[:, ::-1]
        tokens = np.full(held.shape, self._model.tokenizer.pad_token_id, np.int64)
        tokens[held] = np.concatenate([np.asarray(one, np.int64) for one in ids])
        made = {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(held.astype(np.int64)),
            "token_type_ids": torch.zeros(held.shape, dtype=torch.int64),
        }
        return {name: made.get(name, value) for name, value in like.items()}

    def _padded_tokens(self) -> dict[str, Any] | None:
        """The features of PROBE where `_pad` makes the same of its tokens; None where it does not."""
        if len(getattr(self._model, "modalities", None) or ["text"]) > 1:
            return None
        like = self._preprocess(PROBE)
        ids = self._ids([(self._prompt or "") + text for text in PROBE])
        if ids is None or self._model.tokenizer.pad_token_id is None or not all(ids):
            return None
        return like if _same(like, self._pad(ids, like)) else None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    made = {"input_ids", "attention_mask", "token_type_ids"}
    return all(
        name in made and value.dtype == other[name].dtype and torch.equal(value, other[name])
        if isinstance(value, Tensor)
        else isinstance(value, str | int | float | None)
        for name, value in one.items()
    )
