"""Names of datasets and errors in messages."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saebench.config import DatasetConfig


def place(dataset: DatasetConfig) -> str:
    """Return the name of the dataset in errors."""
    files: Any = files_of_split(dataset)
    source = dataset.path if not files else files[0] if isinstance(files, list) else files
    more = f" and {len(files) - 1} more" if isinstance(files, list) and len(files) > 1 else ""
    return f"dataset {source}{more} [{dataset.split}]"


def named(dataset: DatasetConfig, path: Path) -> str:
    return f"dataset {path} [{dataset.split}]"


def files_of_split(dataset: DatasetConfig) -> Any:
    """Return `data_files`; for a mapping (from Python), those of the split."""
    files: Any = dataset.data_files
    return files.get(dataset.split) if isinstance(files, Mapping) else files


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class."""
    message = str(error).strip().splitlines()
    return message[0][:300] if message else type(error).__name__
