"""Files beside the folder of a cache entry: which texts are near-duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saebench.stores.manifest import digest_of
from saebench.stores.texts import Division


def keep_file(folder: Path, hashes: npt.NDArray[np.uint64], above: float) -> Path:
    """Return the path of the mask of those texts that are not near-duplicates of an earlier one."""
    return beside(folder, f".keep-{digest_of(hashes)}-{above:g}.npy")


def read_keep(path: Path, count: int) -> npt.NDArray[np.bool_] | None:
    """Return the mask (count,) bool; None if it was not computed yet, or the file is damaged."""
    try:
        keep: npt.NDArray[np.bool_] = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    return keep if keep.shape == (count,) and keep.dtype == bool else None


def name_of(hashes: npt.NDArray[np.uint64], division: Division) -> str:
    """Return a key that identifies texts and their division into parts."""
    return f"{digest_of(hashes)}-{division.validation:g}-{division.test:g}"


def read_twins(folder: Path) -> dict[str, dict[str, Any]]:
    """Return texts and parts (see `name_of`) -> number of texts with a twin in another part; {} if not counted yet."""
    try:
        found = json.loads(beside(folder, ".twins").read_text("utf-8"))
        return {str(name): dict(counts) for name, counts in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def beside(folder: Path, suffix: str) -> Path:
    """Return the path of a file that belongs to an entry but lies outside its folder."""
    return folder.with_name(folder.name + suffix)
