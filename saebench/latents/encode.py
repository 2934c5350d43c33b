"""Sparse codes of new texts, with the encoder, prompt and preprocessing that the sweep used; any number of texts in
constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from saebench.errors import UserError
from saebench.latents.codes import Codes, offsets_of
from saebench.latents.corpus import Floats
from saebench.latents.second import read_in_order
from saebench.latents.trial import TrainedSAE, encode_rows, open_trial
from saebench.stores.entry import CacheEntry
from saebench.stores.texts import clean, hash_text

BLOCK = 512
"""Texts that are encoded together: a few seconds on a CPU."""


class Encoder:
    """Encodes texts into codes. `trial`: its directory or an exported folder; `model`: a loaded SentenceTransformer; by
    default the trial's `data.model`; `entry`: the trial's embeddings in the cache, whose texts are not encoded again:
    they get the codes of the trial's own evaluation.

    >>> codes = Encoder("runs/x/trials/0003").encode(["A sentence."])  # doctest: +SKIP
    >>> latents, values = codes.row(0)  # doctest: +SKIP
    """

    def __init__(
        self, trial: str | Path | TrainedSAE, *, device: str = "cpu", model: Any = None, entry: CacheEntry | None = None
    ) -> None:
        self.trial = trial if isinstance(trial, TrainedSAE) else open_trial(Path(trial))
        self.reused = 0
        """Texts whose embeddings came from `entry`."""
        self._device, self._model, self._entry = device, model, entry

    @cached_property
    def _sentences(self) -> Any:
        from transformers.utils import logging

        from saebench.stores.sentence_encoder import SentenceEncoder

        if not self.trial.config.data.model:
            raise UserError(
                f"{self.trial.name}: trained on precomputed embeddings: no encoder is known for new texts; pass "
                "embeddings to the SAE in Python"
            )
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of loading weights
        return SentenceEncoder(self.trial.config.data, self._device, self._model)

    @property
    def model(self) -> Any:
        """The SentenceTransformer, loaded."""
        return self._sentences.model

    def embed(self, texts: Sequence[str]) -> Floats:
        """Return (len(texts), d_in) float32 as in the sweep's cache: of cleaned texts, rounded to the stored type."""
        how = self.trial.config.data.clean
        cleaned = [clean(text, how) for text in texts]
        if self._entry is None:
            return self._computed(cleaned)
        index = self._entry.find(np.array([hash_text(text) for text in cleaned], np.uint64))
        rows = np.empty((len(texts), self._entry.d_in), np.float32)
        known, new = np.flatnonzero(index >= 0), np.flatnonzero(index < 0)
        rows[known] = read_in_order(self._entry, index[known])
        if len(new):
            rows[new] = self._computed([cleaned[i] for i in new.tolist()])
        self.reused += len(known)
        return rows

    def _computed(self, texts: Sequence[str]) -> Floats:
        rows = self._sentences.embed(texts).cpu().numpy()
        if rows.shape[1] != self.trial.sae.d_in:
            raise UserError(
                f"{self.trial.name}: data.model gives embeddings of width {rows.shape[1]}, the SAE takes "
                f"{self.trial.sae.d_in}"
            )
        return np.asarray(rows.astype(self.trial.config.data.dtype), np.float32)

    def encode(self, texts: Sequence[str]) -> Codes:
        """Return a row per text; for a text without a visible character no latent fires."""
        there = [i for i, text in enumerate(texts) if clean(text)]
        counts = np.zeros(len(texts), np.int64)
        if not there:
            return Codes(np.empty(0, np.float32), np.empty(0, np.int32), offsets_of(counts), self.trial.sae.dict_size)
        values, latents, counts[there] = encode_rows(self.trial.sae, self.embed([texts[i] for i in there]))
        return Codes(values, latents, offsets_of(counts), self.trial.sae.dict_size)

    def stream(self, texts: Iterable[str], block: int = BLOCK) -> Iterator[tuple[list[str], Codes]]:
        """Blocks of texts with their codes."""
        coming = iter(texts)
        while some := list(islice(coming, block)):
            yield some, self.encode(some)
