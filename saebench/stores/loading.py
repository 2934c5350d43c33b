"""Files and shards of a dataset, each opened on its own. `datasets` is imported only when something is read."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from saebench.config import FILE_FORMATS, DatasetConfig
from saebench.errors import DataError
from saebench.hub import dataset_out_of_reach
from saebench.stores.columns import Row, wanted
from saebench.stores.messages import files_of_split, named, one_line, place

ENVIRONMENT = {"HF_UPDATE_DOWNLOAD_COUNTS": "0"}
"""Keeps `datasets` from telling a server about every local file that is read."""
_GLOB = frozenset("*?[")
_ON_THE_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Source:
    """A file of a dataset, or a shard."""

    name: str
    """Its name in errors."""
    rows: Callable[[], Iterator[Row]]
    columns_differ: bool = False
    """Whether one row may lack a column that others have."""
    header: Callable[[], list[str]] | None = None
    """Reads the names of the columns, if the format has them before the rows."""


def expand(name: str, root: Path = Path()) -> list[Path]:
    """Return the files of one entry of `data_files`, below `root`: a file, or a pattern. Names of existing folders are
    taken literally, so that brackets in them are not a pattern."""
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


# --- files and shards ---


def sources(dataset: DatasetConfig) -> list[Source]:
    files = files_of_split(dataset)
    if dataset.path not in FILE_FORMATS or not files:
        return list(_shards(dataset))
    if dataset.split != "train" and not isinstance(dataset.data_files, Mapping):
        raise DataError(f"{place(dataset)}: split: {dataset.split}: files have one split, train; remove the key")
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


def _local(dataset: DatasetConfig, path: Path) -> Source:
    if dataset.path == "json" and _is_json_lines(path, dataset.encoding):
        return Source(named(dataset, path), lambda: _json_lines(path, dataset), columns_differ=True)
    source = _loaded(dataset, named(dataset, path), escape(str(path)))
    return replace(source, header=_header_of(dataset, path, dataset.path))


def _loaded(dataset: DatasetConfig, name: str, file: str) -> Source:
    """A file that `datasets` reads."""
    files = {dataset.split: [file]} if isinstance(dataset.data_files, Mapping) else [file]
    return Source(name, lambda: iter(_select(dataset, _open(dataset, files)[0])))


def _shards(dataset: DatasetConfig) -> Iterator[Source]:
    """Return the shards of a dataset in a folder or on the hub, which lists its own files."""
    _refuse_out_of_reach(dataset)
    rows, files, kind = _open(dataset, dataset.data_files)
    count = rows.num_shards
    for index in range(count):

        def shard(index: int = index) -> Iterator[Row]:
            return iter(_select(dataset, rows if count == 1 else rows.shard(count, index)))

        path = Path(files[index]) if len(files) == count else None
        header = _header_of(dataset, path, kind) if path is not None and path.is_file() else None
        yield Source(named(dataset, path) if path is not None else place(dataset), shard, header=header)


def _open(dataset: DatasetConfig, data_files: Any) -> tuple[Any, list[str], str]:
    """Return an IterableDataset of `datasets`, its files if they are known, and their format."""
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
        builder.config.features = datasets.Features(dict.fromkeys(wanted(dataset), text))
        builder.config.keep_default_na = False
    rows = builder.as_streaming_dataset(split=dataset.split)
    return rows, list((builder.config.data_files or {}).get(dataset.split, [])), kind


def _header_of(dataset: DatasetConfig, path: Path, kind: str) -> Callable[[], list[str]] | None:
    """Return the function that reads the column names of a local file; None for a format without a header."""
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
    """Select the needed columns, if the columns are known before the rows."""
    there = rows.column_names or []
    chosen = dict.fromkeys(name if name in there else name.partition(".")[0] for name in wanted(dataset))
    return rows.select_columns(list(chosen)) if there and set(chosen) <= set(there) else rows


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _without_patterns(path: str) -> str:
    """Return a path of a folder that `datasets` does not read as a pattern, since it has no quoting. The folder's files
    are linked into a temporary folder of this process."""
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
    """Return `data_files` with `~` replaced by the user's folder, since `datasets` takes it literally."""
    if isinstance(files, list):
        return [_at_home(file) for file in files]
    return os.path.expanduser(files) if isinstance(files, str) else files


# --- JSON lines ------------------------------------------------------------------------------------------------------


@contextmanager
def _text_of(path: Path, encoding: str | None) -> Iterator[Any]:
    import fsspec  # type: ignore[import-untyped]

    with fsspec.open(str(path), "rt", compression="infer", encoding=encoding or "utf-8-sig") as file:
        yield file


def _is_json_lines(path: Path, encoding: str | None) -> bool:
    """Return whether the first non-blank line is a complete JSON object; files in another layout are read by
    `datasets`."""
    try:
        with _text_of(path, encoding) as file:
            first = next((line for line in file if line.strip()), "")
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _json_lines(path: Path, dataset: DatasetConfig) -> Iterator[Row]:
    """Read one object per line, with any keys."""
    with _text_of(path, dataset.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{named(dataset, path)}: line {number}: not JSON: {one_line(error)}") from error
            if not isinstance(row, dict):
                raise DataError(f"{named(dataset, path)}: line {number}: must be a JSON object, as line 1 is")
            yield row


def _refuse_out_of_reach(dataset: DatasetConfig) -> None:
    """Raise DataError if the dataset does not exist. Folders, file formats, and datasets that may be in the hub's local
    caches are not checked."""
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
