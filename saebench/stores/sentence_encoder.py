"""A SentenceTransformer for the cache: batches of texts of similar length, with equal amounts of work.

Texts are sorted by their number of tokens inside a window and cut into batches of about the same number of (padded)
tokens, so that almost nothing is computed for padding; tokenisation runs in a thread ahead of the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.hub import find_model
from saebench.stores.messages import one_line
from saebench.stores.prefetch import prefetch
from saebench.stores.tokens import Tokenised, Tokens

Batch = tuple[npt.NDArray[np.int64], dict[str, Any]]
"""Which texts of the window (positions), and their features."""

BATCH = {"cpu": 64, "cuda": 1024}
"""Texts of median length per forward pass: as many as fit a CPU's cache, or keep a GPU busy."""
FINGERPRINT = 64
"""Values of the embedding of one text."""
AHEAD = 8
"""Batches that tokenisation may be ahead of the device."""


class SentenceEncoder:
    """`data.model`, or the given one, on `device`, with texts cut at `data.max_seq_length`. Raises DataError if it
    cannot be loaded or used."""

    def __init__(self, data: DataConfig, device: str, model: Any = None) -> None:
        self.data = data
        self.device = torch.device(device)
        self.model = _load(data, device) if model is None else _given(data, device, model)
        self._tokens = Tokens(self.model, _prompt(data, self.model))
        row = self.embed(["What does one row hold?"])[0]
        self.d_in = len(row)
        self.fingerprint: list[float] = row[:FINGERPRINT].tolist()
        """Values by which an entry recognises its model: a name on the hub may later mean another one."""

    def info(self) -> dict[str, Any]:
        """Further settings on which the embeddings depend, for the manifest."""
        limit = self.model.max_seq_length
        finite = limit is not None and limit < float("inf")
        packages = ("sentence-transformers", "transformers", "torch")
        return {"max_seq_length": int(limit) if finite else None, "versions": {p: version(p) for p in packages}}

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(len(texts), d_in) float32 on the CPU, in the order of the texts."""
        rows: list[tuple[npt.NDArray[np.int64], Tensor]] = [
            (index, self.forward(features)) for index, features in prefetch(self.batches(self.tokenise(texts)), AHEAD)
        ]
        return self.assemble(texts, rows)

    def assemble(self, texts: Sequence[str], rows: Sequence[tuple[npt.NDArray[np.int64], Tensor]]) -> Tensor:
        """Put the rows of batches back into the order of the texts; refuses NaN and infinity."""
        if not rows:
            return torch.empty(0, self.d_in, dtype=torch.float32)
        order = np.concatenate([index for index, _ in rows])
        shuffled = torch.cat([row for _, row in rows]).cpu()
        out = torch.empty_like(shuffled)
        out[torch.from_numpy(order)] = shuffled
        bad = (~torch.isfinite(out).all(dim=1)).nonzero()
        if len(bad):
            text = texts[int(bad[0])]
            narrow = "; data.precision: float16 is too narrow for some models" * (self.data.precision == "float16")
            raise DataError(
                f"model {self.data.model}: gives NaN or infinity for {len(bad)} texts, such as {text[:50]!r}{narrow}"
            )
        return out

    def tokenise(self, texts: Sequence[str]) -> Tokenised:
        """Return the tokens of the texts, and which texts are longer than the model's limit."""
        return self._tokens(texts)

    def batches(self, tokenised: Tokenised) -> Iterator[Batch]:
        """Return batches, longest texts first, each of about encode_batch_size × (median tokens) tokens, including
        padding."""
        lengths = np.maximum(tokenised.lengths, 1)
        order = np.argsort(-lengths, kind="stable")
        budget = texts_per_batch(self.data, self.device.type) * int(np.median(lengths))
        start = 0
        while start < len(order):
            count = max(1, budget // int(lengths[order[start]]))
            index = order[start : start + count]
            yield index, self._ready(tokenised.features(index))
            start += count

    def _ready(self, features: dict[str, Any]) -> dict[str, Any]:
        """Return features that are copied to a GPU without a sync."""
        if self.device.type != "cuda":
            return features
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in features.items()}

    @torch.inference_mode()
    def forward(self, features: dict[str, Any]) -> Tensor:
        """(n, d_in) float32 on the device; a batch that does not fit the GPU's memory is halved."""
        out = self._fitting(features)
        if out is not None:
            return out
        torch.cuda.empty_cache()  # out of the handler, where the failed pass is held by its traceback
        n = len(features["input_ids"])
        halves = [_rows(features, slice(0, n // 2), n), _rows(features, slice(n // 2, n), n)]
        return torch.cat([self.forward(half) for half in halves])

    def _fitting(self, features: dict[str, Any]) -> Tensor | None:
        """Return the model's embeddings, truncated and scaled as `SentenceTransformer.encode` does; None if memory runs
        out and a smaller batch may fit."""
        try:
            with self._arithmetic():
                beside = self.device.type == "cuda"  # MPS would read what is gone by then (pytorch/pytorch#189690)
                moved = {
                    k: v.to(self.device, non_blocking=beside) if isinstance(v, Tensor) else v
                    for k, v in features.items()
                }
                out: Tensor = self.model(moved)["sentence_embedding"].float()
        except torch.cuda.OutOfMemoryError:
            if len(features["input_ids"]) == 1:
                raise
            return None
        out = out[..., : getattr(self.model, "truncate_dim", None)]
        return torch.nn.functional.normalize(out, dim=1) if self.data.normalize else out

    def _arithmetic(self) -> AbstractContextManager[Any]:
        if self.data.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.data.precision))


def texts_per_batch(data: DataConfig, device: str) -> int:
    """Texts of median length per forward pass on this kind of device."""
    return data.encode_batch_size or BATCH.get(device, BATCH["cuda"])


def _rows(features: dict[str, Any], part: slice, n: int) -> dict[str, Any]:
    return {k: v[part] if isinstance(v, Tensor) and v.ndim and len(v) == n else v for k, v in features.items()}


def _prompt(data: DataConfig, model: Any) -> str | None:
    """Return the prefix of every text: the configured prompt, else the model's own default, as in `encode`."""
    if data.prompt is not None:
        return data.prompt
    prompts: Mapping[str, str] = getattr(model, "prompts", None) or {}
    return prompts.get(getattr(model, "default_prompt_name", None) or "")


def _load(data: DataConfig, device: str) -> Any:
    source, local = find_model(data.model, data.revision)  # before an import that takes seconds
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(source, device=device, revision=data.revision, local_files_only=local)
    except Exception as error:  # hub, safetensors, tokenizers, JSON: each fails with a class of its own
        raise DataError(f"model {data.model}: cannot be loaded: {one_line(error)}") from error
    if data.max_seq_length is not None:
        _limit(model, data.model, data.max_seq_length)
    return model.eval()


def _given(data: DataConfig, device: str, model: Any) -> Any:
    """The caller's model, on the device (as `encode` puts it there) and with the configured limit."""
    if isinstance(model, torch.nn.Module):
        model = model.to(device).eval()
    if data.max_seq_length is not None:
        _limit(model, data.model, data.max_seq_length)
    return model


def _limit(model: Any, name: str, tokens: int) -> None:
    """Cut texts after this many tokens. Raises DataError if the model has fewer positions: it would fail at the first
    long text."""
    try:
        model.max_seq_length = tokens
    except AttributeError:
        raise DataError(f"model {name}: max_seq_length: this model has no such limit") from None
    positions = getattr(getattr(getattr(model[0], "auto_model", None), "config", None), "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise DataError(f"model {name}: max_seq_length: {tokens:,}: this model has {positions:,} positions")
    count = getattr(model.tokenizer, "num_special_tokens_to_add", None)
    marks = count() if count else 0
    if tokens <= marks:
        raise DataError(
            f"model {name}: max_seq_length: {tokens}: the model adds {marks} tokens of its own, so that none of a text "
            "would be kept"
        )
