"""A second encoder: other embeddings of the same texts, used to judge an SAE's latents."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from saebench.config import DataConfig
from saebench.errors import DataError, UserError
from saebench.latents.corpus import Part
from saebench.stores.entry import CacheEntry

CIRCULAR = 0.98
"""Correlation of pairwise cosines above which two encoders count as one."""
COMPARED = 500
"""Texts whose cosines are compared."""

Floats = NDArray[np.float32]


class CircularError(UserError):
    """Raised if the second encoder gives the embeddings that the SAE is trained on."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"{where}: gives the embeddings that the SAE was trained on. Texts along any direction of them are close "
            "to each other in them, so the score would mean nothing. Name another encoder (or score with this one: "
            "--circular-anyway)"
        )


def second_data(data: DataConfig, model: str) -> DataConfig:
    """Return the config of the same texts under another encoder, with that encoder's own defaults."""
    own = {"revision": None, "prompt": None, "max_seq_length": None, "encode_batch_size": None, "normalize": False}
    return data.model_copy(update={"model": model, "cache": True, "deduplicate": None, **own})


def rows_by_text(part: Part, entry: CacheEntry, where: str) -> Floats:
    """Return `entry`'s embeddings (rows, d) of the part's texts, in their order. Raises DataError if it
    lacks some of them."""
    index = entry.find(part.hashes)
    if missing := int((index < 0).sum()):
        raise DataError(
            f"{where}: {missing:,} of the texts are no longer in the data set; restore it, or run the sweep again"
        )
    return read_in_order(entry, index)


def read_in_order(entry: CacheEntry, index: NDArray[np.int64]) -> Floats:
    """Return the rows with these numbers, in any order."""
    ascending = np.argsort(index, kind="stable")
    rows = np.empty((len(index), entry.d_in), np.float32)
    rows[ascending] = entry.read(index[ascending])
    return rows


def check_second(first: CacheEntry, second: CacheEntry, where: str) -> None:
    """Raise CircularError if two entries of the same texts hold (nearly) the same cosines."""
    part = Part("test", first, first.test_index[:COMPARED])
    if is_same_encoder(part.embeddings(), rows_by_text(part, second, where)):
        raise CircularError(where)


def is_same_encoder(a: Floats, b: Floats) -> bool:
    """Return whether two encoders give (nearly) the same cosines between texts: a copy in another folder, in another
    precision, or rotated, is the same encoder."""
    if len(a) < 3:
        return bool(a.shape == b.shape and np.allclose(a, b, atol=1e-3))
    places = np.triu_indices(len(a), 1)
    cosines = np.stack([(u @ u.T)[places] for u in (_unit(a), _unit(b))])
    with np.errstate(invalid="ignore", divide="ignore"):
        return bool(np.asarray(np.corrcoef(cosines))[0, 1] > CIRCULAR)


def _unit(rows: Floats) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return np.asarray(wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30))
