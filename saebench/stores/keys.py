"""The identity of a cache entry: everything that determines the embeddings, and nothing else; and its digest, the cache
key, which names the entry.

In the identity: the model and its revision, cleaning, prompt, normalisation, max_seq_length, arithmetic and stored
type; the dataset, its configuration, files, split, revision, text column, delimiter and encoding. Local files and model
folders count by their content, not by their path. Not in it, because one entry serves them all: num_examples (a prefix
of the stream), holdout (decided by each text's hash), deduplicate (decided by the rows), the label column, and
encode_batch_size (which moves the last bits at most).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from saebench.config import FILE_FORMATS, DataConfig, DatasetConfig
from saebench.errors import DataError
from saebench.stores import own
from saebench.stores.digests import sha256_of
from saebench.stores.loading import expand
from saebench.stores.messages import place

FORMAT = 3
"""Raised when the layout of an entry or the cleaning of texts changes: older entries then have another key."""


def identity_of(data: DataConfig, cache_dir: Path) -> dict[str, Any]:
    """Return everything that determines the embeddings. Raises DataError for a local file that is missing or
    unreadable."""
    model = Path(os.path.expanduser(data.model))
    try:
        if data.embeddings is not None:
            return {"format": FORMAT, **own.identity_of(data, lambda path: _file(path, cache_dir))}
        dataset = _dataset(data.dataset, cache_dir)
        source = _folder(model, cache_dir) if model.is_dir() else data.model
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return {
        "format": FORMAT,
        "model": source,
        "model_revision": data.revision,
        "clean": data.clean,
        "prompt": data.prompt,
        "normalize": data.normalize,
        "max_seq_length": data.max_seq_length,
        "dtype": data.dtype,
        "precision": data.precision,
        **dataset,
    }


def cache_key(identity: dict[str, Any]) -> str:
    """The name of an entry and its folder: 20 hexadecimal digits."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:20]


def _dataset(dataset: DatasetConfig, cache_dir: Path) -> dict[str, Any]:
    if dataset.path in FILE_FORMATS and dataset.data_files is None:
        raise DataError(f"{place(dataset)}: data_files: is missing: name the files to read")
    folder = Path(os.path.expanduser(dataset.path))
    local = dataset.path not in FILE_FORMATS and folder.exists()
    source: Any = dataset.path
    files: list[Any] | None = None
    if dataset.data_files is not None:
        names = [dataset.data_files] if isinstance(dataset.data_files, str) else dataset.data_files
        root = folder if local and folder.is_dir() else Path()
        remote = not local and dataset.path not in FILE_FORMATS
        files = list(names) if remote else [part for name in names for part in _files(name, root, dataset, cache_dir)]
        source = "local" if local else dataset.path
    elif local:
        source = _folder(folder, cache_dir) if folder.is_dir() else _file(folder, cache_dir)
    return {
        "dataset": source,
        "name": dataset.name,
        "data_files": files,
        "split": dataset.split,
        "dataset_revision": dataset.revision,
        "text_column": dataset.text_column if dataset.text is None else None,
        "text": dataset.text,
        "delimiter": dataset.delimiter,
        "encoding": dataset.encoding,
    }


def _files(name: str, root: Path, dataset: DatasetConfig, cache_dir: Path) -> list[Any]:
    """Return digests of the files of one entry of `data_files`: a file, a pattern, or a URL (which is returned
    unchanged)."""
    if "://" in name and not name.startswith("file://"):
        return [name]
    found = expand(name, root)
    if not found:
        raise DataError(f"{place(dataset)}: data_files: {root / os.path.expanduser(name)}: no such file")
    return [_file(p, cache_dir) for p in found]


def _folder(folder: Path, cache_dir: Path) -> dict[str, str]:
    """Relative names and contents of all files below, as one digest."""
    lines = [f"{p.relative_to(folder).as_posix()} {_file(p, cache_dir)['sha256']}" for p in sorted(_inside(folder))]
    return {"sha256": hashlib.sha256("\n".join(lines).encode()).hexdigest()}


def _inside(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below, also behind symbolic links; not hidden ones, which no loader reads and other programs write."""
    real = os.path.realpath(folder)
    if real in above:
        return
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name == "__pycache__":
            continue
        if path.is_dir():
            yield from _inside(path, above | {real})
        elif path.is_file():
            yield path


def _file(path: Path, cache_dir: Path) -> dict[str, str]:
    return {"sha256": sha256_of(path, cache_dir)}
