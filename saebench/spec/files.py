"""Make the files and folders that a spec names absolute: relative ones start at the spec's folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from saebench.arrays import open_embeddings
from saebench.config import FILE_FORMATS, DataConfig
from saebench.errors import DataError
from saebench.sweep_config import EvalConfig


def resolve_files(values: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the sections `data` and `eval` of `values` with absolute paths."""
    found: dict[str, Any] = {}
    if isinstance(data := values.get("data"), DataConfig):
        found["data"] = _resolved(data, folder)
    if isinstance(evaluation := values.get("eval"), EvalConfig) and isinstance(evaluation.second_encoder, str):
        second = _local(evaluation.second_encoder, folder)
        found["eval"] = evaluation.model_copy(update={"second_encoder": second})
    return found


def _resolved(data: DataConfig, folder: Path) -> DataConfig:
    """Make relative files and folders absolute, from the spec's folder; keep names of hub models and datasets."""
    update: dict[str, Any] = {}
    model, dataset = getattr(data, "model", None), getattr(data, "dataset", None)
    own = {key: getattr(data, key, None) for key in ("embeddings", "texts", "ids", "labels")}
    if isinstance(own["embeddings"], str):
        found: dict[str, Any] = {
            key: _beside(value, folder, key) for key, value in own.items() if isinstance(value, str)
        }
        with contextlib.suppress(DataError):  # a rule reports the problem
            found["num_examples"] = min(data.num_examples, open_embeddings(found["embeddings"]).count)
        return data.model_copy(update={**found, **_named_after(found["embeddings"], own["embeddings"], data)})
    if isinstance(model, str):
        update["model"] = _local(model, folder)
    path = getattr(dataset, "path", None)
    if dataset is not None and isinstance(path, str):
        files = dataset.data_files
        if path in FILE_FORMATS:
            files = _file(files, folder) if isinstance(files, str) else [_file(f, folder) for f in files or ()] or None
        else:
            path = _local(path, folder)
        update["dataset"] = dataset.model_copy(update={"path": path, "data_files": files})
    return data.model_copy(update=update)


def _beside(name: str, folder: Path, key: str) -> str:
    """Return the path from the spec's folder; if there is no such file, the name is a column of a Parquet file."""
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
    return path if key == "embeddings" or os.path.exists(path) else name


def _named_after(path: str, as_given: str, data: DataConfig) -> dict[str, Any]:
    """Return model and dataset named after the resolved path, if they were named after the embeddings' path."""
    dataset = data.dataset.model_copy(update={"data_files": path})
    found: dict[str, Any] = {"dataset": dataset} if data.dataset.data_files in (as_given, path) else {}
    return found | ({"model": path} if data.model in (as_given, path) else {})


def _local(name: str, folder: Path) -> str:
    """Return `name`, made absolute if it is an existing file or folder."""
    path = os.path.join(folder, os.path.expanduser(name))
    return os.path.normpath(path) if name and os.path.exists(path) else name


def _file(name: str, folder: Path) -> str:
    return name if "://" in name else os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
