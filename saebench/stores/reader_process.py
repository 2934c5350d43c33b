"""`python -m saebench.stores.reader_process`: the first pass over a dataset, texts only.

Reads, cleans, removes duplicates and writes shards of texts and their hashes. A separate process, because `datasets`
imports torch (unless disabled, as in this process) and its threads outlive a broken stream.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from io import BufferedRandom
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores.child_process import Message, run_child
from saebench.stores.dataset import stream
from saebench.stores.loading import ENVIRONMENT as OF_DATASETS
from saebench.stores.manifest import ROWS_PER_PART, ROWS_PER_SHARD, Shard, write_file
from saebench.stores.messages import one_line, place
from saebench.stores.texts import Counts, Text, select

ENVIRONMENT = {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0", **OF_DATASETS}
"""Keeps `datasets` from importing frameworks: the process starts in one second instead of four."""


def serve(requests: Iterator[Message], reply: Callable[[Message], None]) -> None:
    """Request: {data, folder}. Replies: progress (kept, read) now and then, then done (shards, counts)."""
    request = next(requests)
    data = DataConfig.model_validate(request["data"])
    counts = Counts()
    texts = select(_watched(stream(data.dataset), counts, reply), counts, data.num_examples, how=data.clean)
    try:
        shards = [shard.model_dump() for shard in write_shards(texts, Path(request["folder"]))]
    except OSError as error:
        raise DataError(f"{request['folder']}: cannot write: {one_line(error)}") from error
    if not shards:
        raise DataError(
            f"{place(data.dataset)}: no text ({counts.read:,} rows read: {counts.empty:,} empty, "
            f"{counts.non_string:,} not strings)"
        )
    reply({"type": "done", "shards": shards, "counts": counts.to_dict()})


def _watched(
    rows: Iterator[tuple[Any, Any]], counts: Counts, reply: Callable[[Message], None]
) -> Iterator[tuple[Any, Any]]:
    """Yield the same rows and report progress, even if no row is kept, as in a stream of duplicates."""
    last = time.monotonic()
    for row in rows:
        yield row
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            reply({"type": "progress", "kept": counts.kept, "read": counts.read})


def write_shards(texts: Iterator[Text], folder: Path) -> Iterator[Shard]:
    """Write texts and hashes; a row group of the Parquet file is one part of the encoding."""
    for number, first in enumerate(texts):
        group = chain([first], islice(texts, ROWS_PER_SHARD - 1))
        yield write_texts(number, group, folder)


def write_texts(number: int, texts: Iterator[Text], folder: Path) -> Shard:
    """Write the texts of one shard, with labels and row numbers, and their hashes."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    schema = pyarrow.schema([("text", pyarrow.string()), ("label", pyarrow.string()), ("row", pyarrow.int64())])
    hashes: list[int] = []

    def write_columns(file: BufferedRandom) -> None:
        with ParquetWriter(file, schema, compression="zstd") as writer:
            while part := list(islice(texts, ROWS_PER_PART)):
                columns = [[t.text for t in part], [_label(t.label) for t in part], [t.row for t in part]]
                writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=ROWS_PER_PART)
                hashes.extend(t.hash for t in part)

    text_file = write_file(folder, f"{number:05d}-texts", ".parquet", write_columns)
    hash_file = write_file(folder, f"{number:05d}-hashes", ".npy", lambda file: np.save(file, np.array(hashes, "<u8")))
    return Shard(count=len(hashes), texts=text_file, hashes=hash_file)


def _label(label: Any) -> str | None:
    return None if label is None else json.dumps(label, default=str)


if __name__ == "__main__":
    run_child(serve)
