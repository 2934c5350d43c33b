"""One part of the corpus that a trial was trained on: rows, texts, labels, from the embedding cache."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.config import DataConfig, TrialConfig
from saebench.errors import DataError
from saebench.stores import cache
from saebench.stores.entry import CacheEntry
from saebench.stores.manifest import ROWS_PER_SHARD

PARTS = ("test", "validation", "train")
MOST_TRAIN = 20_000
"""Training rows that are read by default: those with the lowest text hashes, for every seed."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of an entry of the cache that belong together, in the order of the stream."""

    name: str
    entry: CacheEntry
    index: NDArray[np.int64]
    """Their row numbers in the entry, ascending."""

    def __len__(self) -> int:
        return len(self.index)

    @property
    def key(self) -> str:
        """Identifies the embeddings and the selected rows: 16 hexadecimal digits."""
        which = hashlib.sha256(self.entry.hashes[self.index].astype("<u8").tobytes()).hexdigest()
        return hashlib.sha256(f"{self.entry.cache_key} {which}".encode()).hexdigest()[:16]

    def embeddings(self, start: int = 0, stop: int | None = None) -> Floats:
        """(rows, d_in) float32 of rows `start` to `stop` of the part."""
        return self.entry.read(self.index[start:stop])

    @cached_property
    def texts(self) -> list[str] | None:
        """The texts; None if they can no longer be read."""
        try:
            return texts_of(self.entry, self.index)
        except (OSError, ValueError):  # pyarrow's errors are ValueErrors
            return None

    @cached_property
    def labels(self) -> list[Any] | None:
        """The labels, None for a row without one; None if the corpus was read without a label column."""
        try:
            return self.entry.labels(self.index)
        except (OSError, ValueError):
            return None

    @cached_property
    def row_numbers(self) -> list[int]:
        """The rows in the data set (from 0), for joining results with the user's table; the rows in the entry if its
        texts can no longer be read."""
        try:
            return self.entry.row_numbers(self.index)
        except (OSError, ValueError):
            return [int(row) for row in self.index]

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """Hashes of the texts, which identify a row when the data set is read again."""
        found: NDArray[np.uint64] = self.entry.hashes[self.index]
        return found


def open_part(
    config: TrialConfig, name: str, cache_dir: Path, *, build: bool = False, most_train: int = MOST_TRAIN
) -> Part:
    """A part of the trial's corpus. Raises DataError if its embeddings are not in the cache (with `build`, they are
    encoded) or the part has no rows."""
    entry = open_entry(config.data, cache_dir, config.cache_key, build=build)
    index = entry.sample_index(most_train) if name == "train" else getattr(entry, f"{name}_index")
    if not len(index):
        raise DataError(f"cache {entry.cache_key}: no text in the part {name!r}")
    return Part(name, entry, index)


def open_entry(data: DataConfig, cache_dir: Path, key: str | None, *, build: bool = False) -> CacheEntry:
    """The cache entry that a trial was trained on."""
    data = data.model_copy(update={"cache": True})  # with `cache: off`, the same texts in the same order
    entry = cache.find(data, cache_dir, key)
    if entry is not None:
        return entry
    if not build:
        raise DataError(
            f"cache {cache_dir}: the embeddings of this trial are missing; encode the texts again with "
            "--build, or name another cache with --cache-dir"
        )
    if key is not None and (now := cache.entry_folder(data, cache_dir).name) != key:
        raise DataError(
            f"cache {cache_dir}: the embeddings {key} of this trial are gone, and its texts or its model have changed "
            f"since: encoded again they would be {now}"
        )
    return cache.build(data, cache_dir)


def texts_of(entry: CacheEntry, index: NDArray[np.int64]) -> list[str]:
    """The texts of these rows, shard by shard."""
    return list(_texts(entry, index))


def _texts(entry: CacheEntry, index: NDArray[np.int64]) -> Iterator[str]:
    import pyarrow.parquet

    cuts = np.searchsorted(index, np.arange(len(entry.shards) + 1) * ROWS_PER_SHARD)
    for number, shard in enumerate(entry.shards):
        some = index[cuts[number] : cuts[number + 1]] - number * ROWS_PER_SHARD
        if len(some):
            table = pyarrow.parquet.read_table(entry.directory / shard.texts.name, columns=["text"])
            yield from table.column("text").take(some).to_pylist()
