"""Convert texts to a model's features, with each text tokenised once.

SentenceTransformer tokenises and pads a batch at a time, and sorting by length needs the tokens before. If a model's
features are only its padded tokens, which is tested once, they are made here from the existing tokens: that takes a
third of the time, and on a GPU tokenisation is the bottleneck. Long texts are cut before they are tokenised, if the
same test shows that nothing changes.
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
CHARACTERS_PER_TOKEN = 16
"""A text with more characters per token of the limit is cut before it is tokenised: tokenising all of 5 MB takes 700
MB."""
MARGIN = 64
"""Tokens beyond the limit that the beginning of a text must have, so that its end does not change what is kept."""
PROBE = ["What does one row hold?", "  Two\tLines,\nÄpfel und ¿por qué?  ", "a", "word " * 3000, "Z" * 20_000]
"""Case, space, other letters, and texts that every model cuts."""


@dataclass(frozen=True)
class Tokenised:
    """Texts of a window."""

    lengths: Index
    """Tokens of each after truncation; a quarter of the characters if the model has no usual tokenizer."""
    truncated: npt.NDArray[np.bool_]
    """Which texts the model truncates; none if it has no usual tokenizer."""
    features: Callable[[Index], dict[str, Any]]
    """Return the model's input for the texts at these positions, padded to the longest."""


class Tokens:
    """Tokenises for one SentenceTransformer; `prompt` precedes every text."""

    def __init__(self, model: Any, prompt: str | None) -> None:
        self._model, self._prompt = model, prompt
        self._shortens = True
        self._like = self._padded_tokens()
        self._shortens = self._like is not None or _same(
            self._preprocess(PROBE), self._preprocess([self._shortened(text) for text in PROBE])
        )

    def __call__(self, texts: Sequence[str]) -> Tokenised:
        short = [self._shortened(text) for text in texts]
        found = self._ids(short if self._like is None else [(self._prompt or "") + text for text in short])
        if found is None:
            lengths = np.array([len(text) // 4 for text in texts], np.int64)
            whole = np.zeros(len(texts), bool)
            return Tokenised(lengths, whole, lambda index: self._preprocess([short[i] for i in index]))
        tokens, truncated = found
        truncated |= np.array([len(a) < len(b) for a, b in zip(short, texts, strict=True)], bool)
        lengths = np.array([len(one) for one in tokens], np.int64)
        if self._like is None:
            return Tokenised(lengths, truncated, lambda index: self._preprocess([short[i] for i in index]))
        like = self._like
        return Tokenised(lengths, truncated, lambda index: self._pad([tokens[i] for i in index], like))

    def _preprocess(self, texts: Sequence[str]) -> dict[str, Any]:
        features: dict[str, Any] = self._model.preprocess(texts, prompt=self._prompt)
        return features

    def _tokenizer(self) -> Any:
        """The model's tokenizer if it is one of transformers'; else None."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self._model, "tokenizer", None)
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None

    def _ids(self, texts: Sequence[str]) -> tuple[list[list[int]], npt.NDArray[np.bool_]] | None:
        """Tokens of each text, and which texts have more of them than the limit."""
        tokenizer, limit = self._tokenizer(), self._model.max_seq_length
        if tokenizer is None:
            return None
        options = {"return_attention_mask": False, "return_token_type_ids": False}
        found = tokenizer(list(texts), truncation=limit is not None, max_length=limit, **options)
        tokens: list[list[int]] = found["input_ids"]
        full = np.array([limit is not None and len(one) >= limit for one in tokens], bool)
        if found.encodings is not None:  # of a fast tokenizer, which knows whether anything was left
            full[full] = [bool(found.encodings[i].overflowing) for i in np.flatnonzero(full)]
        return tokens, full

    def _shortened(self, text: str) -> str:
        """Return the beginning of a long text on which its tokens up to the limit depend; the whole text if that is
        unknown."""
        limit = self._model.max_seq_length
        if not self._shortens or limit is None or len(text) <= CHARACTERS_PER_TOKEN * limit:
            return text
        tokenizer = self._tokenizer()
        if tokenizer is None:
            return text
        size = int(CHARACTERS_PER_TOKEN * limit)
        from_the_end = tokenizer.truncation_side == "left"
        while size < len(text):
            whole = text[-size:] if from_the_end else text[:size]
            part = whole.partition(" ")[2] if from_the_end else whole.rpartition(" ")[0]
            part = part if 2 * len(part) > size else whole  # few spaces: Chinese, say
            if len(tokenizer(part, truncation=False, verbose=False)["input_ids"]) >= limit + MARGIN:
                return part
            size *= 2
        return text

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
        """Return the features of PROBE if `_pad` makes the same of its tokens, else None."""
        if len(getattr(self._model, "modalities", None) or ["text"]) > 1:
            return None
        like = self._preprocess(PROBE)
        found = self._ids([(self._prompt or "") + self._shortened(text) for text in PROBE])
        if found is None or self._model.tokenizer.pad_token_id is None or not all(found[0]):
            return None
        return like if _same(like, self._pad(found[0], like)) else None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    made = {"input_ids", "attention_mask", "token_type_ids"}
    return all(
        name in made and value.dtype == other[name].dtype and torch.equal(value, other[name])
        if isinstance(value, Tensor)
        else isinstance(value, str | int | float | None)
        for name, value in one.items()
    )
