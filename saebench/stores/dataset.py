"""Rows of a dataset, file by file. No torch, and `datasets` only when something is read.

Every file (or shard, of a dataset on the hub) must have the text column: one that lacks it is an error that names the
file, because its rows would be left out without a word. Values of a CSV file are read as text, whatever they look
like: guessed types would depend on which rows are read together.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from saebench.config import FILE_FORMATS, DatasetConfig
from saebench.errors import DataError
from saebench.hub import dataset_out_of_reach

ENVIRONMENT = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}
"""Keeps `datasets` from telling a server about every local file that is read."""
LINES_WITHOUT_A_KEY = 1000
"""JSON lines that may lack a column, at the beginning of a file, before the file is said to lack it."""
_GLOB = frozenset("*?[")
_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")
_EMPTY_FILE = ("BatchSize must be greater than 0", "EmptyDataError")
"""What `datasets` makes of a Parquet file without rows, and of a CSV file without a header."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """A file of a dataset, or a shard."""

    name: str
    """As an error names it."""
    rows: Callable[[], Iterator[Row]]
    columns_differ: bool = False
    """Whether one row may lack a column that others have."""
    header: Callable[[], list[str]] | None = None
    """Reads the names of the columns, where the format can tell them before a row is read."""


def stream(dataset: DatasetConfig) -> Iterator[tuple[Any, Any]]:
    """(text, label) of every row, in the order of the files and of the rows in them; None for a missing value.

    Raises DataError in one line: nothing there, a file without the column (and which columns it has), or a source that
    fails half-way.
    """
    count = 0
    for source in _guarded(dataset, _sources, dataset):
        for row in _rows(dataset, source):
            count += 1
            yield row.get(dataset.text_column), _label(row.get(dataset.label_column)) if dataset.label_column else None


def place(dataset: DatasetConfig) -> str:
    """The dataset, as an error names it."""
    files: Any = _files_of_split(dataset)
    source = dataset.path if not files else files[0] if isinstance(files, list) else files
    more = f" and {len(files) - 1} more" if isinstance(files, list) and len(files) > 1 else ""
    return f"dataset {source}{more} [{dataset.split}]"


def expand(name: str, root: Path = Path()) -> list[Path]:
    """Files that one entry of `data_files` names, below `root`: a file, or a pattern. Folders that exist are taken as
    they are spelt, so that brackets in their names are no pattern."""
    url = name.startswith("file://")
    path = root / os.path.expanduser(name.removeprefix("file://"))
    if url and not path.exists():
        path = Path(unquote(str(path)))
    if path.is_file() or not _GLOB & set(path.name if path.parent.exists() else str(path)):
        return [path] if path.is_file() else []
    base, *parts = Path(path.anchor), *path.parts[1 if path.anchor else 0 :]
    while parts and (base / parts[0]).exists():
        base /= parts.pop(0)
    return sorted(found for found in base.glob("/".join(parts)) if found.is_file()) if parts else []


# --- files and shards ------------------------------------------------------------------------------------------------


def _sources(dataset: DatasetConfig) -> list[Source]:
    files = _files_of_split(dataset)
    if dataset.path not in FILE_FORMATS or not files:
        return list(_shards(dataset))
    if dataset.split != "train" and not isinstance(dataset.data_files, Mapping):
        raise DataError(f"{place(dataset)}: split: {dataset.split}: files have one split, train")
    found: list[Source] = []
    for name in [files] if isinstance(files, str | os.PathLike) else files:
        if "://" in str(name) and not str(name).startswith("file://"):
            found.append(_loaded(dataset, str(name), str(name)))
            continue
        paths = expand(str(name))
        if not paths:
            raise DataError(f"{place(dataset)}: data_files: {name}: no such file")
        found += [_local(dataset, path) for path in paths]
    return found


def _files_of_split(dataset: DatasetConfig) -> Any:
    """`data_files`; where it is a mapping (from Python), those of the split."""
    files: Any = dataset.data_files
    return files.get(dataset.split) if isinstance(files, Mapping) else files


def _local(dataset: DatasetConfig, path: Path) -> Source:
    if dataset.path == "json" and _is_json_lines(path, dataset.encoding):
        return Source(_named(dataset, path), lambda: _json_lines(path, dataset), columns_differ=True)
    source = _loaded(dataset, _named(dataset, path), escape(str(path)))
    return replace(source, header=_header_of(dataset, path, dataset.path))


def _loaded(dataset: DatasetConfig, name: str, file: str) -> Source:
    """A file that `datasets` reads."""
    files = {dataset.split: [file]} if isinstance(dataset.data_files, Mapping) else [file]
    return Source(name, lambda: iter(_select(dataset, _open(dataset, files)[0])))


def _shards(dataset: DatasetConfig) -> Iterator[Source]:
    """Shards of a dataset in a folder or on the hub, which knows itself what its files are."""
    _refuse_out_of_reach(dataset)
    rows, files, kind = _open(dataset, dataset.data_files)
    count = rows.num_shards
    for index in range(count):

        def shard(index: int = index) -> Iterator[Row]:
            return iter(_select(dataset, rows if count == 1 else rows.shard(count, index)))

        path = Path(files[index]) if len(files) == count else None
        header = _header_of(dataset, path, kind) if path is not None and path.is_file() else None
        yield Source(_named(dataset, path) if path is not None else place(dataset), shard, header=header)


def _open(dataset: DatasetConfig, data_files: Any) -> tuple[Any, list[str], str]:
    """An IterableDataset of `datasets`, its files where they are known, and their format."""
    os.environ |= ENVIRONMENT
    import datasets

    options: dict[str, Any] = {}
    if dataset.encoding is not None and dataset.path in ("csv", "json", "text"):
        options["encoding"] = dataset.encoding
    if dataset.delimiter is not None and dataset.path == "csv":
        options["sep"] = dataset.delimiter
    builder = datasets.load_dataset_builder(
        _without_patterns(dataset.path),
        dataset.name,
        data_files=_at_home(data_files),
        revision=dataset.revision,
        **options,
    )
    kind = type(builder.config).__name__.removesuffix("Config").lower()
    if kind == "csv" and builder.config.features is None:
        text = datasets.Value("string")
        builder.config.features = datasets.Features(dict.fromkeys(_wanted(dataset), text))
        builder.config.keep_default_na = False
    rows = builder.as_streaming_dataset(split=dataset.split)
    return rows, list((builder.config.data_files or {}).get(dataset.split, [])), kind


def _header_of(dataset: DatasetConfig, path: Path, kind: str) -> Callable[[], list[str]] | None:
    """What reads the column names of a local file; None for a format that has no header."""
    if kind == "csv":
        return lambda: _csv_header(path, dataset.delimiter, dataset.encoding)
    if kind == "parquet":
        return lambda: _parquet_header(path)
    return None


def _csv_header(path: Path, delimiter: str | None, encoding: str | None) -> list[str]:
    import pandas

    return list(map(str, pandas.read_csv(path, nrows=0, sep=delimiter or ",", encoding=encoding).columns))


def _parquet_header(path: Path) -> list[str]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def _select(dataset: DatasetConfig, rows: Any) -> Any:
    """Only the columns that are needed, where the columns are known before a row is read."""
    if not rows.column_names or not set(_wanted(dataset)) <= set(rows.column_names):
        return rows
    return rows.select_columns(_wanted(dataset))


def _wanted(dataset: DatasetConfig) -> list[str]:
    return list(dict.fromkeys(column for column in (dataset.text_column, dataset.label_column) if column))


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _without_patterns(path: str) -> str:
    """A name for a folder that `datasets` does not take for a pattern: it has no way to quote one. Its files are linked
    into a folder that lives as long as this process."""
    folder = Path(path).expanduser()
    if not _GLOB & set(str(folder.absolute())) or not folder.is_dir():
        return path
    _folders.append(tempfile.TemporaryDirectory(prefix="saebench-"))
    linked = Path(_folders[-1].name)
    for file in (found for found in folder.rglob("*") if found.is_file()):
        link = linked / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(file.absolute())
    return str(linked)


def _at_home(files: Any) -> Any:
    """`data_files` with the user's folder in the place of `~`, which `datasets` takes for a name."""
    if isinstance(files, list):
        return [_at_home(file) for file in files]
    return os.path.expanduser(files) if isinstance(files, str) else files


def _named(dataset: DatasetConfig, path: Path) -> str:
    return f"dataset {path} [{dataset.split}]"


# --- JSON lines ------------------------------------------------------------------------------------------------------


@contextmanager
def _text_of(path: Path, encoding: str | None) -> Iterator[Any]:
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(str(path), "rt", compression="infer", encoding=encoding or "utf-8-sig") as file:
        yield file


def _is_json_lines(path: Path, encoding: str | None) -> bool:
    """Whether the first line that is not blank is a whole JSON object; a file in another layout is `datasets`' to
    read."""
    try:
        with _text_of(path, encoding) as file:
            first = next((line for line in file if line.strip()), "")
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, dataset: DatasetConfig) -> Iterator[Row]:
    """One object per line, with whatever keys."""
    with _text_of(path, dataset.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{_named(dataset, path)}: line {number}: not JSON: {one_line(error)}") from error
            if not isinstance(row, dict):
                raise DataError(f"{_named(dataset, path)}: line {number}: must be a JSON object, as line 1 is")
            yield row


# --- what goes wrong -------------------------------------------------------------------------------------------------


def _rows(dataset: DatasetConfig, source: Source) -> Iterator[Row]:
    """Rows of one file, once it is known to have the columns."""
    count = 0
    try:
        if source.header is not None:
            _check_columns(dataset, source.name, [dict.fromkeys(source.header())])
        rows = source.rows()
        first = list(islice(rows, LINES_WITHOUT_A_KEY if source.columns_differ else 1))
        _check_columns(dataset, source.name, first)
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


def _check_columns(dataset: DatasetConfig, name: str, rows: list[Row]) -> None:
    for key in ("text_column", "label_column"):
        column = getattr(dataset, key)
        if column is None or not rows or any(column in row for row in rows):
            continue
        there = list(dict.fromkeys(column for row in rows for column in row))
        hint = ""
        if dataset.path == "csv" and len(there) == 1 and (found := re.search(r"[;\t|]", there[0])):
            hint = f"; if {found[0]!r} separates them, set data.dataset.delimiter to it"
        raise DataError(f"{name}: {key}: {column}: no such column (there are: {', '.join(there)[:300]}){hint}")


def _failure(name: str, count: int, error: Exception) -> DataError:
    message = f"{type(error).__name__}: {error}"
    if any(mark in message for mark in _EMPTY_FILE):
        return DataError(f"{name}: no text in it: a data file is empty")
    if isinstance(error, OSError) and error.filename and _is_cache_of_datasets(str(error.filename)):
        return DataError(f"{error.filename}: cannot be written: {error.strerror}; set HF_HOME to a folder that can be")
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


def _label(label: Any) -> Any:
    """A label; None where a CSV file has nothing between two delimiters."""
    return None if label == "" else label


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or its class."""
    message = str(error).strip().splitlines()
    return message[0][:300] if message else type(error).__name__
