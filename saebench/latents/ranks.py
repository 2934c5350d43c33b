"""Areas under the ROC curve of latents, exactly, from sparse codes: every text on which a latent is 0 is a tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.latents.codes import Codes

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranked:
    """Mid-ranks (1 to rows) of the activations of each latent."""

    matrix: Any
    """scipy csc_array (rows, latents): the rank of each text that fires the latent."""
    silent: Array
    """(latents,) the rank that all texts share on which it is 0."""
    rows: int


def ranked(codes: Codes) -> Ranked:
    """Ranks per latent over all rows, ties at their mean rank."""
    by_latent = codes.matrix().tocsc().astype(np.float64)
    latent = np.repeat(np.arange(codes.dict_size), np.diff(by_latent.indptr))
    values = by_latent.data
    order = np.lexsort((values, latent))
    starts = by_latent.indptr[:-1]
    negative = np.bincount(latent[values < 0], minlength=codes.dict_size).astype(np.float64)
    zeros = codes.rows - np.diff(by_latent.indptr)
    place = np.arange(len(values)) - starts[latent]  # 0, 1, ... inside each latent, ascending
    rank = place + 1.0 + np.where(values[order] > 0, zeros[latent], 0)
    new = np.ones(len(values), bool)  # the first of a group of equal values
    new[1:] = (np.diff(values[order]) != 0) | (np.diff(latent) != 0)
    group = np.cumsum(new) - 1
    mean = np.bincount(group, rank) / np.bincount(group)
    ranks = by_latent.copy()
    ranks.data = np.empty(len(values))
    ranks.data[order] = mean[group]
    return Ranked(ranks, negative + (zeros + 1) / 2, codes.rows)


def auroc(ranks: Ranked, members: NDArray[Any]) -> Array:
    """(latents, classes) probability that a member's activation is above another text's, ties half; members (rows,
    classes) bool. NaN for a class with no member, or nothing else."""
    inside = members.astype(np.float64)
    count = inside.sum(0)
    firing = ranks.matrix.copy()
    firing.data = np.ones_like(firing.data)
    total = np.asarray(ranks.matrix.T @ inside) + ranks.silent[:, None] * (count - np.asarray(firing.T @ inside))
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (total - count * (count + 1) / 2) / (count * (ranks.rows - count))
    return found


def f1(codes: Codes, members: NDArray[Any]) -> Array:
    """(latents, classes) F1 of "it fires" as a rule for membership: 2 both / (firing + members)."""
    firing = codes.matrix().copy()
    firing.data = np.ones_like(firing.data, dtype=np.float64)
    both = np.asarray(firing.T @ members.astype(np.float64))
    alone = np.asarray(firing.sum(axis=0), np.float64).ravel()
    below: Array = alone[:, None] + members.sum(0)[None]
    return np.asarray(2 * both / np.maximum(below, 1))


def auroc_of(positive: Array, negative: Array) -> float:
    """The same for two lists of scores, `negative` ascending; NaN if one is empty."""
    if not len(positive) or not len(negative):
        return float("nan")
    above = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(above.mean() / (2 * len(negative)))


# --- classes ---------------------------------------------------------------------------------------------------------

FEWEST = 10
"""Members that a class, and the rest, must have in every part."""
MOST_CLASSES = 100


@dataclass(frozen=True)
class Classes:
    """The classes that can be judged, and their members."""

    names: list[Any]
    rows: tuple[NDArray[np.int64], ...]
    """Per part: the rows that have a label."""
    members: tuple[NDArray[np.bool_], ...]
    """Per part: (labelled rows, classes)."""
    left_out: int
    """Classes with too few members in some part, or beyond the MOST_CLASSES most common."""


def classes_of(*parts: Sequence[Any]) -> Classes:
    """The classes with FEWEST members in each of these lists of labels, the most common of the first list first. None
    and NaN do not count as labels."""
    labelled = [np.flatnonzero([label is not None and label == label for label in labels]) for labels in parts]
    known = [[_name(labels[i]) for i in rows.tolist()] for labels, rows in zip(parts, labelled, strict=True)]
    counts = [dict(zip(*np.unique(np.array(some, dtype=object).astype(str), return_counts=True), strict=True))
              for some in known]  # fmt: skip
    first = counts[0] if counts else {}
    fit = [
        name
        for name in first
        if all(FEWEST <= c.get(name, 0) <= len(some) - FEWEST for c, some in zip(counts, known, strict=True))
    ]
    names = sorted(fit, key=lambda name: (-first[name], name))[:MOST_CLASSES]
    members = tuple(np.array([[label == name for name in names] for label in some], bool).reshape(len(some), len(names))
                    for some in known)  # fmt: skip
    return Classes([str(name) for name in names], tuple(labelled), members, len(first) - len(names))


def _name(label: Any) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def some_rows(codes: Codes, rows: NDArray[np.int64]) -> Codes:
    """Return the codes of these rows."""
    if len(rows) == codes.rows:
        return codes
    matrix = codes.matrix()[rows]
    return Codes(matrix.data, matrix.indices.astype(np.int32), matrix.indptr.astype(np.int64), codes.dict_size)
