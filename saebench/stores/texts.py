"""Texts out of a dataset: streamed, cleaned, told apart by their hash. No torch (and `datasets` only when it is read).

A text's place (training or hold-out) is a function of the text alone, so that no order of the stream, no cap and no
duplicate can carry a text from one part to the other.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from saebench.config import DatasetConfig
from saebench.errors import DataError
from saebench.hub import dataset_out_of_reach


@dataclass(frozen=True, slots=True)
class Text:
    """One text, cleaned, and what belongs to it."""

    text: str
    label: Any
    hash: int
    """64 bits; decides between training and hold-out."""


@dataclass
class Counts:
    """What became of the rows that were read."""

    read: int = 0
    kept: int = 0
    duplicate: int = 0
    empty: int = 0
    """None, "" and whitespace."""
    non_string: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def hash_text(text: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 of the cleaned text."""
    return int.from_bytes(_digest(text)[:8], "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def threshold(holdout: float) -> int:
    """A text is held out when its hash lies below this."""
    return min(int(holdout * 2**64), 2**64 - 1)


def clean(text: str) -> str:
    """Runs of whitespace become one space; lone surrogates, which UTF-8 cannot carry, become question marks."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def select(values: Iterable[tuple[Any, Any]], counts: Counts, cap: int, distinct: bool = True) -> Iterator[Text]:
    """The first `cap` usable texts among (value, label) pairs; says in `counts` what was left out and why."""
    seen: set[bytes] = set()
    for value, label in values:
        counts.read += 1
        if value is not None and not isinstance(value, str):
            counts.non_string += 1
            continue
        text = clean(value or "")
        if not text:
            counts.empty += 1
            continue
        digest = _digest(text)
        if distinct and digest in seen:
            counts.duplicate += 1
            continue
        if distinct:
            seen.add(digest)
        counts.kept += 1
        yield Text(text, label, int.from_bytes(digest[:8], "big"))
        if counts.kept >= cap:
            return


def stream(dataset: DatasetConfig) -> Iterator[tuple[Any, Any]]:
    """(text, label) of every row, in the order of the stream, as the dataset has them.

    Raises DataError in one line: nothing there, no such column (and which there are), or the source failed half-way.
    """
    where = place(dataset)
    count = 0
    try:
        rows = iter(_load(dataset))
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            if count == 0:
                _check_columns(dataset, list(row))
            count += 1
            yield row.get(dataset.text_column), row.get(dataset.label_column) if dataset.label_column else None
    except DataError:
        raise
    except StopIteration:  # also raised while loading: `datasets` does that for an empty file
        return
    except Exception as error:  # every backend (pyarrow, fsspec, aiohttp, the hub) has classes of its own
        if any(mark in f"{type(error).__name__}: {error}" for mark in _EMPTY_FILE):
            raise DataError(f"{where}: no text in it: a data file is empty") from error
        doing = f"failed after {count:,} rows" if count else "cannot be read"
        raise DataError(f"{where}: {doing}: {one_line(error)}") from error


_EMPTY_FILE = ("BatchSize must be greater than 0", "EmptyDataError")
"""What `datasets` makes of a Parquet file without rows, and of a CSV file without a header."""


_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


def _refuse_out_of_reach(dataset: DatasetConfig) -> None:
    """Nothing is asked about folders, file formats, and what the hub's local caches may hold."""
    from datasets import config, packaged_modules
    from datasets.naming import camelcase_to_snakecase
    from huggingface_hub import constants

    name = dataset.path
    formats = packaged_modules._PACKAGED_DATASETS_MODULES
    if os.path.isfile(name) and name not in formats and not name.endswith(".py"):
        raise DataError(f"{place(dataset)}: a file; `path` names its format (json, csv, ...), `data_files` the file")
    if not _ON_THE_HUB.fullmatch(name) or name in formats or os.path.exists(name):
        return
    *owner, last = name.split("/")
    caches = (
        Path(constants.HF_HUB_CACHE) / f"datasets--{name.replace('/', '--')}",
        Path(config.HF_DATASETS_CACHE) / "___".join([*owner, camelcase_to_snakecase(last)]),
    )
    if any(cache.exists() for cache in caches):
        return
    if why_not := dataset_out_of_reach(name, dataset.revision):
        raise DataError(
            f"{place(dataset)}: no such folder, no copy in the hub's cache ({caches[0].parent}), and {why_not}"
        )


def _load(dataset: DatasetConfig) -> Any:
    import datasets

    _refuse_out_of_reach(dataset)
    rows = datasets.load_dataset(
        dataset.path,
        dataset.name,
        data_files=_at_home(dataset.data_files),
        split=dataset.split,
        revision=dataset.revision,
        streaming=True,
    )
    wanted = list({dataset.text_column: None, dataset.label_column or dataset.text_column: None})
    if rows.column_names:  # known for parquet and most of the hub; not for JSON before it is read
        _check_columns(dataset, rows.column_names)
        rows = rows.select_columns(wanted)
    return rows


def _at_home(files: Any) -> Any:
    """`data_files` with the user's folder in the place of `~`, which `datasets` takes for a name. What is no string or
    list of them (files for each split) stays as it is."""
    if isinstance(files, list):
        return [_at_home(file) for file in files]
    return os.path.expanduser(files) if isinstance(files, str) else files


def _check_columns(dataset: DatasetConfig, there: list[str]) -> None:
    for key in ("text_column", "label_column"):
        column = getattr(dataset, key)
        if column is not None and column not in there:
            known = ", ".join(there) or "none"
            raise DataError(f"{place(dataset)}: {key}: {column}: no such column (there are: {known})")


def place(dataset: DatasetConfig) -> str:
    """The dataset, as an error names it."""
    files: Any = dataset.data_files
    if isinstance(files, Mapping):  # files of each split
        files = files.get(dataset.split)
    source = dataset.path if not files else files[0] if isinstance(files, list) else files
    more = f" and {len(files) - 1} more" if isinstance(files, list) and len(files) > 1 else ""
    return f"dataset {source}{more} [{dataset.split}]"


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    message = str(error).strip().splitlines()
    return message[0][:300] if message else type(error).__name__
