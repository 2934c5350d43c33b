"""An entry of the cache from precomputed embeddings, with texts, ids and labels. Rows that can be mapped stay in their
files (sources.py), others are copied into shards. No torch, no encoder.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from saebench.arrays import Embeddings, Rows, column, files_of, open_embeddings
from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores.digests import sha256_of
from saebench.stores.manifest import MANIFEST, ROWS_PER_SHARD, Manifest, Shard, digest_of, write_file
from saebench.stores.progress import OnProgress, Progress
from saebench.stores.reader_process import write_texts
from saebench.stores.sources import sources_of
from saebench.stores.texts import Counts, Text, select

BESIDE = ("texts", "ids", "labels")
"""Keys of `data` with a value per row."""


def identity_of(data: DataConfig, digest: Any) -> dict[str, Any]:
    """Return what determines rows, texts and labels: the content of the files, and the cleaning of texts. `digest`
    returns the checksum of a file."""
    assert data.embeddings is not None
    beside = {key: getattr(data, key) for key in BESIDE}
    return {
        "embeddings": [digest(file) for file in files_of(data.embeddings)],
        **{key: digest(Path(name)) if name and Path(name).is_file() else name for key, name in beside.items()},
        "clean": data.clean,
        "dtype": data.dtype,
    }


def build(data: DataConfig, folder: Path, identity: dict[str, Any], report: OnProgress, copy: bool = False) -> None:
    """Write the entry: all rows with a text (or an id) that no earlier row has; with `copy`, rows that could be mapped
    are copied, too. Raises DataError in one line."""
    assert data.embeddings is not None
    embeddings = open_embeddings(data.embeddings)
    digests = [one["sha256"] for one in identity["embeddings"]]
    sources = () if copy else sources_of(data, digests)
    counts, reading = Counts(), folder / "reading"
    shutil.rmtree(reading, ignore_errors=True)
    reading.mkdir(parents=True)
    try:
        distinct = bool(data.texts or data.ids)  # numbers of rows are
        texts = select(_values(data, embeddings), counts, embeddings.count, distinct=distinct, how=data.clean)
        shards = list(_shards(data, embeddings, texts, reading, report, mapped=bool(sources)))
        if not shards:
            raise DataError(f"data.texts: {data.texts}: every text is empty")
        now = [sha256_of(file, folder.parents[1]) for file in files_of(data.embeddings)]
        if now != digests or (sources and sources != sources_of(data, digests)):
            raise DataError(
                f"data.embeddings: {data.embeddings}: changed while it was read; run the same command again"
            )
        for file in (file for shard in shards for file in shard.files()):
            (reading / file.name).replace(folder / file.name)
    except BaseException:
        if not (folder / MANIFEST).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(reading, ignore_errors=True)
    Manifest(
        identity=identity,
        named={"model": data.model, "dataset": str(embeddings.path)},
        label_column="labels" if data.labels else None,
        cap=embeddings.count + 1,
        counts=counts.to_dict(),
        d_in=embeddings.d_in,
        shards=tuple(shards),
        sources=sources,
    ).write(folder)


def _values(data: DataConfig, embeddings: Embeddings) -> Iterator[tuple[Any, Any]]:
    """Return (text, label) of each row; the id replaces a missing text, the row's number a missing id."""
    given = {key: column(getattr(data, key), embeddings, f"data.{key}") for key in BESIDE if getattr(data, key)}
    texts = given.get("texts") or map(str, given.get("ids") or range(embeddings.count))
    return zip(texts, given.get("labels") or repeat(None, embeddings.count), strict=True)


def _shards(
    data: DataConfig, embeddings: Embeddings, texts: Iterator[Text], folder: Path, report: OnProgress, mapped: bool
) -> Iterator[Shard]:
    blocks = _Blocks(embeddings)
    for number in range(-(-embeddings.count // ROWS_PER_SHARD)):
        chosen = list(islice(texts, ROWS_PER_SHARD))
        if not chosen:
            return
        report(Progress("encoding", number * ROWS_PER_SHARD, embeddings.count, 0.0))
        numbers = np.array([text.row for text in chosen], np.int64)
        rows = blocks.take(numbers)
        rows = rows if mapped else rows.astype(data.dtype)
        if not mapped and not np.isfinite(rows).all():
            raise DataError(
                f"data.embeddings: {embeddings.path}: a value is too large for data.dtype: {data.dtype}; use float32"
            )
        zero = np.flatnonzero(~rows.any(axis=1))
        if len(zero):
            row = chosen[int(zero[0])].row
            raise DataError(f"data.embeddings: {embeddings.path}: row {row} holds only zeros: leave such rows out")
        shard = write_texts(number, iter(chosen), folder)
        kind, array = ("numbers", numbers) if mapped else ("rows", rows)
        file = write_file(folder, f"{number:05d}-{kind}", ".npy", partial(np.save, arr=array))
        hashes = np.array([text.hash for text in chosen], "<u8")
        yield shard.model_copy(update={kind: file, "encoded": len(rows), "encoded_digest": digest_of(hashes)})


class _Blocks:
    """Rows by ascending number, with one block in memory at a time."""

    def __init__(self, embeddings: Embeddings) -> None:
        self._d_in = embeddings.d_in
        self._blocks = embeddings.blocks(ROWS_PER_SHARD)
        self._block: Rows = np.zeros((0, embeddings.d_in), np.float32)
        self._start = 0

    def take(self, wanted: Rows) -> Rows:
        """Return the rows with these numbers, which must be above those of the previous call."""
        parts = []
        while True:
            here = wanted[(wanted >= self._start) & (wanted < self._start + len(self._block))]
            parts.append(self._block[here - self._start])
            if sum(map(len, parts)) == len(wanted):
                return np.concatenate(parts)
            self._start += len(self._block)
            self._block = next(self._blocks)
