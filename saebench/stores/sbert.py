"""`ActivationsStoreSBERT`: sentence embeddings as mini-batches, from the cache or directly from the stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import compress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.runs import paths
from saebench.stores import cache
from saebench.stores.blocks import StreamSettings
from saebench.stores.dataset import stream
from saebench.stores.entry import CacheEntry, check_counts
from saebench.stores.mapping import read_mapping
from saebench.stores.rows import CachedRows
from saebench.stores.sentence_encoder import SentenceEncoder, texts_per_batch
from saebench.stores.streamed import StreamedRows
from saebench.stores.texts import Counts, Text, clean_texts, select

BATCHES_IN_BUFFER = 32
"""Encoder batches per block if a typed configuration streams; more if a block would be less than..."""
BLOCK_IN_BATCHES = 4
"""...so many training batches."""


class ActivationsStoreSBERT:
    """Streams texts, encodes them with a SentenceTransformer, returns shuffled mini-batches of their embeddings.

        cfg is a mapping: dataset_path, and optionally dataset_name, data_files, split ("train"): go to
        `datasets.load_dataset(..., streaming=True)` as they are; text_column ("text"); num_examples: cap on texts;
        model_batch_size: texts per call of the encoder; num_batches_in_buffer: such calls per shuffled block;
        batch_size: rows per mini-batch; device; holdout (0): share of the texts that is held out, by their hash: one
        number, or {validation, test}; seed (0); clean, delimiter, encoding: as in a spec. One pass: at its end every
        row has been returned once and `next_batch` raises DataExhausted, a RuntimeError. or a DataConfig, with
        batch_size, seed, device and cache_dir beside it: endless, from the cache (built if it is missing), or, with
        `cache: off`, from the stream.

    >>> store = ActivationsStoreSBERT(model=sbert, cfg=config)  # doctest: +SKIP
    >>> batch = store.next_batch()  # doctest: +SKIP

    With a DataConfig, `model` may be None: `data.model` is then loaded only if a text must be encoded here, so never
    with the cache. Rows from the cache are those of `data.model` in any case; `cache_key` names the entry, if it is
    known, so that later changes of the texts do not matter.
    """

    def __init__(
        self,
        model: Any,
        cfg: Mapping[str, Any] | DataConfig,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        device: str | None = None,
        cache_dir: Path | None = None,
        cache_key: str | None = None,
    ) -> None:
        self.model, self.cfg = model, cfg
        self.examples_used = 0
        """Number of rows returned so far."""
        if isinstance(cfg, DataConfig):
            if batch_size is None:
                raise TypeError("batch_size: missing: it must be given beside a DataConfig")
            self._data, self._counts = cfg, Counts()
            self.device, self.batch_size, self.seed = device or "cpu", batch_size, seed
            self.model_batch_size = size = texts_per_batch(cfg, self.device.partition(":")[0])
            self.num_batches_in_buffer = max(BATCHES_IN_BUFFER, BLOCK_IN_BATCHES * batch_size // size)
            self._typed, self._shares = True, (cfg.parts.validation, cfg.parts.test)
            if cfg.cache:
                self._entry = _entry(cfg, cache_dir or paths.cache_dir(), self.device, cache_key)
        else:
            given = read_mapping(cfg)
            self._data, self._counts = given.data, Counts()
            self.device, self.batch_size, self.seed = given.device, given.batch_size, given.seed
            self.model_batch_size, self.num_batches_in_buffer = given.model_batch_size, given.num_batches_in_buffer
            self._typed, self._shares = False, given.shares
        self._rows = self._stream if self._entry is None else self._cached(self._entry)

    _entry: CacheEntry | None = None

    def _cached(self, entry: CacheEntry) -> CachedRows:
        return CachedRows(entry, self.batch_size, self.seed, self.device)

    @cached_property
    def _stream(self) -> StreamedRows:
        settings = StreamSettings(
            validation=self._shares[0],
            test=self._shares[1],
            encode_batch=self.model_batch_size,
            batches_in_buffer=self.num_batches_in_buffer,
            batch_size=self.batch_size,
            seed=self.seed,
            endless=self._typed,
        )
        return StreamedRows(self._texts, self.get_activations, settings, self.device)

    def _texts(self) -> Iterator[Text]:
        if self._entry is not None:
            keep = self._entry.keep
            return self._entry.texts() if keep is None else compress(self._entry.texts(), keep)
        self._counts = Counts()
        # a mapping is served as it is, duplicates and all; a DataConfig means the same texts with and without cache
        rows = stream(self._data.dataset)
        return select(rows, self._counts, self._data.num_examples, distinct=self._typed, how=self._data.clean)

    # --- the trainer's side ------------------------------------------------------------------------------------------

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return self._rows.d_in

    @property
    def num_train(self) -> int:
        """Training rows of one epoch."""
        return self._rows.num_train

    @property
    def num_validation(self) -> int:
        """Rows of the validation part."""
        return self._rows.num_validation

    @property
    def num_test(self) -> int:
        """Rows of the test part."""
        return self._rows.num_test

    @property
    def entry(self) -> CacheEntry | None:
        """The cache entry, if there is one."""
        return self._entry

    def next_batch(self) -> Tensor:
        """(batch_size, d_in) float32 on the device; with a mapping, the last one may be shorter."""
        batch = self._rows.next_batch()
        self.examples_used += len(batch)
        return batch

    def sample(self, n: int) -> Tensor:
        """(min(n, num_train), d_in) training rows, always the same: a function of the data, not of the seed."""
        return self._rows.sample(n)

    def set_aside(self, n: int, places: Tensor) -> None:
        """From now on `next_batch` returns none of these rows of `sample(n)`, unless there are no others. An epoch from
        the cache is shorter by them; a stream returns the preceding text instead of each."""
        self._rows.set_aside(n, places)

    def train_labels(self, n: int) -> list[Any] | None:
        """Labels of the rows of `sample(n)`; None without a label column."""
        return self._rows.sample_labels(n)

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        """All rows for pruning and choosing, in batches, always in the same order."""
        return self._rows.part("validation", batch_size)

    def validation_labels(self) -> list[Any] | None:
        """Labels of the validation rows; None without a label column."""
        return self._rows.labels("validation")

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        """All rows for final numbers, in batches, always in the same order."""
        return self._rows.part("test", batch_size)

    def test_labels(self) -> list[Any] | None:
        """Labels of the test rows; None without a label column."""
        return self._rows.labels("test")

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the store, as JSON."""
        return {**self._rows.state_dict(), "examples_used": self.examples_used}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises DataError if it is of other data or settings."""
        self._rows.load_state_dict(state)
        self.examples_used = int(state.get("examples_used", 0))

    # --- the stream's side -------------------------------------------------------------------------------------------

    @property
    def max_examples(self) -> int:
        return self._data.num_examples

    @property
    def tokens_column(self) -> str:
        """Column of the texts."""
        return self._data.dataset.text_column

    @property
    def counts(self) -> Counts:
        """Counts of the rows of the current pass: kept, and left out by reason."""
        return self._counts

    @cached_property
    def _encoder(self) -> Any:
        if self._data.embeddings is not None:
            raise DataError(
                f"data.embeddings: {self._data.embeddings}: no model was given, so no text can be encoded; set "
                "data.model"
            )
        return SentenceEncoder(self._data, self.device, self.model)

    def get_batch_tokens(self) -> list[str]:
        """Return up to model_batch_size training texts, in the order of the stream; raise DataExhausted at its end."""
        return self._stream.next_texts()

    def get_activations(self, texts: str | Sequence[str]) -> Tensor:
        """(len(texts), d_in) float32 on the device, cleaned and encoded as the texts of the dataset are; one text gives
        one row. Raises DataError for an item that is not a text, and if the model gives NaN or infinity."""
        texts = clean_texts([texts] if isinstance(texts, str) else texts, self._data.clean)
        if not texts:
            return torch.empty(0, self.d_in, dtype=torch.float32, device=self.device)
        if self._typed:
            rows: Tensor = self._encoder.embed(texts)
        else:
            keywords = {"batch_size": self.model_batch_size, "convert_to_tensor": True, "show_progress_bar": False}
            with torch.no_grad():
                rows = torch.as_tensor(self.model.encode(texts, device=self.device, **keywords))
            if not bool(torch.isfinite(rows).all()):
                raise DataError(
                    f"the model gives NaN or infinity for one of {len(texts)} texts, the first of which is "
                    f"{texts[0][:50]!r}"
                )
        return rows.to(self.device, torch.float32).clone()  # encode's are inference tensors, unfit for backward

    def _fill_buffer(self) -> Tensor:
        """Encode the next num_batches_in_buffer batches: (rows, d_in) in the order of the stream."""
        return self._stream.fill()

    def _get_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches of the next pool of rows: half of a new block, shuffled with the half that waited."""
        return DataLoader(TensorDataset(self._stream.next_pool()), batch_size=self.batch_size)


def _entry(data: DataConfig, cache_dir: Path, device: str, cache_key: str | None) -> CacheEntry:
    entry = cache.find(data, cache_dir, cache_key)
    if entry is None and cache_key is not None and cache.entry_folder(data, cache_dir).name != cache_key:
        raise DataError(
            f"cache {cache_dir}: the embeddings {cache_key} are missing, and the texts or the model have changed "
            "since: restore them, or start a sweep under another name"
        )
    return entry or cache.build(data, cache_dir, [device])


def open_store(
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    device: str,
    cache_dir: Path | None = None,
    cache_key: str | None = None,
) -> ActivationsStoreSBERT:
    """Return the store that a trial trains on: the cache entry `cache_key`, if that is given. Raises DataError if a
    training batch cannot be filled or the data cannot be read."""
    store = ActivationsStoreSBERT(
        None, data, batch_size=batch_size, seed=seed, device=device, cache_dir=cache_dir, cache_key=cache_key
    )
    if store.num_train < batch_size:  # where the cache is off
        raise DataError(
            f"{store.num_train:,} training texts do not fill one batch of {batch_size:,}; lower train.batch_size"
        )
    if store.entry is None:  # a sweep has looked at an entry before its first trial
        check_counts(data, store.num_train, store.num_validation, store.num_test)
    return store
