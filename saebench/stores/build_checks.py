"""Checks while an entry of the cache is built: space on the disk, the same data, the same model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores import keys
from saebench.stores.encoder_pool import EncoderPool
from saebench.stores.manifest import ROWS_PER_SHARD, Manifest
from saebench.stores.messages import place

SPARE_BYTES = 256 << 20
"""Kept free on the disk."""
OTHER_MODEL = 0.1
"""Two embeddings of a text come from different models if their distance is above this share of their length; lower
precision moves them by a tenth of that."""


def check_disk(folder: Path, data: DataConfig, d_in: int, rows: int) -> None:
    """Raise DataError if the disk has no room for the new rows, and those of one shard twice: while its pieces are
    joined, it holds both."""
    size = d_in * np.dtype(data.dtype).itemsize
    needed = (rows + min(rows, ROWS_PER_SHARD)) * size + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = f"{rows:,} embeddings need {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
        raise DataError(f"cache {folder.parent}: {sizes}; free some or choose another cache (--cache-dir)")


def check_identity(folder: Path, data: DataConfig, identity: dict[str, Any]) -> None:
    """Raise DataError if the dataset or the model has changed since the build began."""
    now = keys.identity_of(data, folder.parents[1])
    if now != identity:
        what = f"model {data.model}" if now["model"] != identity["model"] else place(data.dataset)
        raise DataError(f"{what}: changed while it was being read; run the same command again")


def check_model(folder: Path, data: DataConfig, manifest: Manifest, encoders: EncoderPool) -> None:
    """Raise DataError if the encoders' model is not the one that made the rows: its name does not show that."""
    model = data.model
    remove = f"remove the entry: saebench cache gc {folder.name}"
    if encoders.d_in not in (None, manifest.d_in):
        raise DataError(
            f"cache {folder}: its rows have {manifest.d_in} values, but model {model} now gives "
            f"{encoders.d_in}; {remove}"
        )
    if encoders.fingerprint and manifest.fingerprint:
        before, now = np.array(manifest.fingerprint), np.array(encoders.fingerprint)
        if np.linalg.norm(now - before) > OTHER_MODEL * np.linalg.norm(before):
            raise DataError(
                f"cache {folder}: model {model} no longer gives the embeddings cached under its name; {remove}"
            )
