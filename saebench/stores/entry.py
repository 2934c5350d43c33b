"""An entry of the embedding cache, divided into parts: its rows, texts, labels. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores.beside import keep_file, name_of, read_keep, read_twins
from saebench.stores.in_use import Hold
from saebench.stores.manifest import ROWS_PER_SHARD, Manifest, Shard, has_size, read_hashes
from saebench.stores.sources import MappedRows, check_sources, map_sources, take_rows
from saebench.stores.texts import EVALUATED, Division, Part, Text

SAME_ROWS = 1_000
"""Number of rows of a part compared to find out whether all its rows are equal."""

Rows = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CacheEntry:
    """The first `count` texts of an entry, without those that `data.deduplicate` leaves out, divided into parts."""

    directory: Path
    d_in: int
    num_train: int
    num_validation: int
    num_test: int
    info: dict[str, Any]
    """Counts of the rows read (kept, duplicate, empty, non_string; for the whole entry, which may be longer), model,
    dataset, and the settings of the encoding."""
    manifest: Manifest
    count: int
    division: Division
    keep: npt.NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    """(count,) False for near-duplicates of an earlier text; None if all texts are used."""
    hold: Hold | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, data: DataConfig, hold: Hold | None = None) -> Self | None:
        """Return the entry as `data` uses it; None if it is not complete or a file is missing or has the wrong size.
        Raises OSError if a file disappears meanwhile, or hashes are damaged."""
        count = manifest.examples(data)
        if count is None or manifest.encoded < count or manifest.d_in is None or count == 0:
            return None
        needed = manifest.shards[: -(-count // ROWS_PER_SHARD)]
        if not all(has_size(folder, file) for shard in needed for file in shard.files()):
            return None
        division = Division(data.parts.validation, data.parts.test)
        hashes = read_hashes(folder, needed)[:count]
        keep = None
        if data.deduplicate is not None:
            if (keep := read_keep(keep_file(folder, hashes, data.deduplicate), count)) is None:
                return None
            hashes = hashes[keep]
        test = int((hashes < np.uint64(division.test_below)).sum())
        train = int((hashes >= np.uint64(division.train_from)).sum())
        validation = len(hashes) - test - train
        info = {
            **manifest.counts,
            "truncated": sum(shard.truncated for shard in needed),
            **manifest.encoder,
            "model": data.model,
            "model_revision": data.revision,
            "dataset": data.dataset.path,
            "dataset_revision": data.dataset.revision,
            "cache_key": folder.name,
        }
        if keep is not None:
            info |= {"near_duplicate": int((~keep).sum()), "deduplicate": data.deduplicate}
        info |= read_twins(folder).get(name_of(hashes, division), {})
        return cls(folder, manifest.d_in, train, validation, test, info, manifest, count, division, keep, hold)

    @property
    def cache_key(self) -> str:
        return self.directory.name

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards with the first `count` rows."""
        return self.manifest.shards[: -(-self.count // ROWS_PER_SHARD)]

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(count,) hashes of the texts."""
        return read_hashes(self.directory, self.shards)[: self.count]

    @cached_property
    def train_index(self) -> Index:
        """(num_train,) row numbers of the training texts, ascending."""
        return self._where(self.hashes >= np.uint64(self.division.train_from))

    @cached_property
    def validation_index(self) -> Index:
        """(num_validation,) row numbers of the validation texts, ascending."""
        below, above = np.uint64(self.division.train_from), np.uint64(self.division.test_below)
        return self._where((self.hashes < below) & (self.hashes >= above))

    @cached_property
    def test_index(self) -> Index:
        """(num_test,) row numbers of the test texts, ascending."""
        return self._where(self.hashes < np.uint64(self.division.test_below))

    def check(self, data: DataConfig) -> None:
        """Raise DataError if no SAE can be trained or evaluated on the entry: a part has no texts, or only equal
        rows."""
        check_counts(data, self.num_train, self.num_validation, self.num_test)
        for part in ("train", *EVALUATED):
            rows = self.read(self.index_of(part)[:SAME_ROWS])
            if (rows == rows[0]).all():
                what = f"embeddings {data.embeddings}" if data.embeddings is not None else f"model {data.model}"
                raise DataError(
                    f"{what}: the first {len(rows):,} of {len(self.index_of(part)):,} {part} texts have the same "
                    "embedding: there is nothing to reconstruct; give more texts, or another model"
                )

    def index_of(self, part: Part) -> Index:
        """Return the row numbers of a part."""
        index: Index = getattr(self, f"{part}_index")
        return index

    def _where(self, chosen: npt.NDArray[np.bool_]) -> Index:
        return np.flatnonzero(chosen if self.keep is None else chosen & self.keep)

    def sample_index(self, n: int) -> Index:
        """Return the row numbers of min(n, num_train) training texts: those of the lowest hashes, so that the sample
        depends only on the data."""
        if n >= self.num_train:
            return self.train_index
        lowest = np.argpartition(self.hashes[self.train_index], n)[:n]
        return np.sort(self.train_index[lowest])

    def rows(self) -> list[Rows | MappedRows]:
        """Return the (rows, d_in) embeddings of each shard, memory-mapped and read-only. Raises DataError if they are
        in files of the user that have changed."""
        return [self._rows_of(shard) for shard in self.shards]

    def _rows_of(self, shard: Shard) -> Rows | MappedRows:
        if shard.numbers is not None:
            return MappedRows(self._maps, np.load(self.directory / shard.numbers.name, mmap_mode="r"))
        assert shard.rows is not None
        return np.asarray(np.load(self.directory / shard.rows.name, mmap_mode="r"))

    @cached_property
    def _maps(self) -> list[Rows]:
        self.check_sources()
        return map_sources(self.manifest.sources, self.d_in)

    def check_sources(self) -> None:
        """Raise DataError if the rows are in files of the user that have changed since the entry was built."""
        check_sources(self.manifest.sources, self.directory.parents[1])

    def read(self, index: Index) -> npt.NDArray[np.float32]:
        """Return (len(index), d_in) the rows with these numbers, which must be ascending."""
        out = np.empty((len(index), self.d_in), np.float32)
        cuts = np.searchsorted(index, np.arange(len(self.shards) + 1) * ROWS_PER_SHARD)
        for number, shard in enumerate(self.shards):
            start, stop = cuts[number], cuts[number + 1]
            if start < stop:
                take_rows(self._rows_of(shard), index[start:stop] - number * ROWS_PER_SHARD, out[start:stop])
        return out

    @cached_property
    def _by_hash(self) -> tuple[Index, npt.NDArray[np.uint64]]:
        """Row numbers in the order of their hashes, and the hashes in that order."""
        order = np.argsort(self.hashes, kind="stable")
        return order, self.hashes[order]

    def find(self, hashes: npt.NDArray[np.uint64]) -> Index:
        """Return the row number of each text, which is given by its hash; -1 for one that the entry does not hold."""
        order, known = self._by_hash
        place = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
        return np.where(known[place] == hashes, order[place], -1)

    def texts(self) -> Iterator[Text]:
        """Yield all `count` texts in the stream's order, also those that `deduplicate` leaves out: text i is row i."""
        import pyarrow.parquet

        left = self.count
        for shard in self.shards:
            hashes = np.load(self.directory / shard.hashes.name)
            table = pyarrow.parquet.read_table(self.directory / shard.texts.name)
            columns = (table.column(name).to_pylist() for name in ("text", "label", "row"))
            for text, label, row, hash_ in zip(*columns, hashes.tolist(), strict=True):
                if left == 0:
                    return
                left -= 1
                yield Text(text, None if label is None else json.loads(label), hash_, row)

    def row_numbers(self, index: Index) -> list[int]:
        """Return the row numbers in the dataset (from 0) of these rows, to join results to the user's own table; for
        equal texts, that of the first."""
        column = self._column("row")
        return [column[i] for i in index.tolist()]

    def _column(self, name: str) -> list[Any]:
        import pyarrow.parquet

        tables = [pyarrow.parquet.read_table(self.directory / one.texts.name, columns=[name]) for one in self.shards]
        return [value for table in tables for value in table.column(name).to_pylist()]

    def labels(self, index: Index) -> list[Any] | None:
        """Return the labels of the given rows; None if the entry was read without a label column."""
        if self.manifest.label_column is None:
            return None
        column = self._column("label")
        return [None if column[i] is None else json.loads(column[i]) for i in index.tolist()]


def check_counts(data: DataConfig, train: int, validation: int, test: int) -> None:
    """Raise DataError if a part is empty: parts are chosen by hash, so with few texts a part may get none."""
    for part, count in (("validation", validation), ("test", test)):
        if count == 0:
            share = getattr(data.parts, part)
            raise DataError(
                f"data.holdout: the {part} part is empty: {share:.3g} of {train + validation + test:,} texts, chosen "
                "by their hash; give more texts or a larger share"
            )
