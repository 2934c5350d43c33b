"""Rows of a dataset, file by file. No torch, and `datasets` only when something is read.

Every file (or shard, of a dataset on the hub) must have the text column: one that lacks it is an error that names the
file, because its rows would be left out silently. All values of a CSV file are read as text: guessed types would depend
on which rows are read together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from saebench.config import DatasetConfig
from saebench.errors import DataError
from saebench.stores.columns import Row, columns, label_of, text_of, value_of
from saebench.stores.loading import Source, sources
from saebench.stores.messages import one_line, place

LINES_WITHOUT_A_KEY = 1000
"""Number of JSON lines at the start of a file that may lack a column before the file counts as lacking it."""
_EMPTY_FILE = ("BatchSize must be greater than 0", "EmptyDataError")
"""Column names that `datasets` gives a Parquet file without rows and a CSV file without a header."""


def stream(dataset: DatasetConfig, label_key: str = "label_column") -> Iterator[tuple[Any, Any]]:
    """(text, label) of every row, in the order of the files and of the rows in them; None for a missing value.
    Messages call the label column by `label_key`.

    Raises DataError in one line: no file, a file without the column (and its columns), or a source that fails half-way.
    """
    count = 0
    for source in _guarded(dataset, sources, dataset):
        for row in _rows(dataset, source, label_key):
            count += 1
            label = label_of(value_of(row, dataset.label_column)) if dataset.label_column else None
            yield text_of(dataset, row), label


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _rows(dataset: DatasetConfig, source: Source, label_key: str) -> Iterator[Row]:
    """Yield the rows of one file, once it is known to have the columns."""
    count = 0
    try:
        if source.header is not None:
            _check_columns(dataset, source.name, [dict.fromkeys(source.header())], label_key)
        rows = source.rows()
        first = list(islice(rows, LINES_WITHOUT_A_KEY if source.columns_differ else 1))
        _check_columns(dataset, source.name, first, label_key)
        for row in chain(first, rows):
            yield row
            count += 1
    except DataError:
        raise
    except StopIteration:  # `datasets` raises it for an empty file
        return
    except Exception as error:  # every backend (pyarrow, fsspec, aiohttp, the hub) has classes of its own
        raise _failure(source.name, count, error) from error


def _guarded(dataset: DatasetConfig, make: Callable[..., list[Source]], *arguments: Any) -> list[Source]:
    try:
        return make(*arguments)
    except DataError:
        raise
    except StopIteration:
        return []
    except Exception as error:
        raise _failure(place(dataset), 0, error) from error


def _check_columns(dataset: DatasetConfig, name: str, rows: list[Row], label_key: str) -> None:
    for key, column in columns(dataset, label_key):
        if not rows or any(column in row or column.partition(".")[0] in row for row in rows):
            continue
        there = list(dict.fromkeys(column for row in rows for column in row))
        hint = ""
        if dataset.path == "csv" and len(there) == 1 and (found := re.search(r"[;\t|]", there[0])):
            hint = f"; if {found[0]!r} separates them, set data.dataset.delimiter to it"
        raise DataError(f"{name}: {key}: {column}: no such column (there are: {', '.join(there)[:300]}){hint}")


def _failure(name: str, count: int, error: Exception) -> DataError:
    message = f"{type(error).__name__}: {error}"
    if any(mark in message for mark in _EMPTY_FILE):
        return DataError(f"{name}: no text: a data file is empty")
    if isinstance(error, OSError) and error.filename and _is_cache_of_datasets(str(error.filename)):
        return DataError(f"{error.filename}: cannot be written: {error.strerror}; set HF_HOME to a writable folder")
    doing = f"failed after {count:,} rows" if count else "cannot be read"
    if found := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message):
        fields, line, saw = found.groups()
        return DataError(
            f"{name}: line {line} has {saw} fields, the header {fields}: quote fields that hold the delimiter, or set "
            "data.dataset.delimiter if it is not a comma"
        )
    if "column names don't match" in message or "JSON parse error: Column(" in message or "scalar of type" in message:
        return DataError(
            f"{name}: {doing}: its rows have different keys or types ({one_line(error)[:120]}); save it as JSON lines "
            "(one object per line, *.jsonl with path: json), where keys and types may differ"
        )
    return DataError(f"{name}: {doing}: {one_line(error)}")


def _is_cache_of_datasets(path: str) -> bool:
    from datasets import config

    folders = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, config.HF_MODULES_CACHE)
    return any(Path(path).is_relative_to(folder) for folder in map(str, folders))
