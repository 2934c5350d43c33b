"""Texts that are nearly the same: pairs of embeddings with a high cosine, by exact search, a block at a time. No torch.

Finds the texts that are near an earlier one (`data.deduplicate` leaves them out), and counts the evaluated texts with
an equal or nearly equal row in the training part. The results are stored beside the entry, because they depend on how
much of it is used and how it is divided.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NEAR = 0.95
"""Cosine above which a training text counts as nearly the same as a text that is evaluated on."""
BLOCK = 4_096
"""Rows compared at a time: their cosines with as many others take 64 MB."""
MOST_PRODUCTS = 5e11
"""Most multiplications for counting near neighbours, some seconds; of a larger corpus only the texts with the
lowest hashes are compared, which is a random sample."""

Floats = npt.NDArray[np.float32]
Index = npt.NDArray[np.int64]
Read = Callable[[Index], Floats]
"""Returns the rows with these numbers (ascending)."""
OnRows = Callable[[int, int], None]
"""Called with the number of compared rows and the number of all rows."""


def without_near_duplicates(
    read: Read, count: int, above: float, report: OnRows = lambda _done, _of: None
) -> npt.NDArray[Any]:
    """(count,) bool: False for a row whose cosine with an earlier row that is True is above this."""
    keep = np.ones(count, bool)
    for start in range(0, count, BLOCK):
        report(start, count)
        index = np.arange(start, min(start + BLOCK, count))
        rows = _unit(read(index))
        alive = np.ones(len(index), bool)
        for before in _blocks(np.flatnonzero(keep[:start])):
            alive &= (rows @ _unit(read(before)).T).max(axis=1) <= above
        near = rows @ rows.T > above
        for i in np.flatnonzero(np.triu(near, 1).any(axis=1)):
            if alive[i]:
                alive[i + 1 :] &= ~near[i, i + 1 :]
        keep[index] = alive
    return keep


def count_near(read: Read, ours: Index, theirs: Index, above: float, report: OnRows = lambda _done, _of: None) -> int:
    """How many of the rows `ours` have a cosine above this with a row of `theirs`."""
    found = 0
    for number, mine in enumerate(_blocks(ours)):
        report(number * BLOCK, len(ours))
        rows = _unit(read(mine))
        near = np.zeros(len(mine), bool)
        for others in _blocks(theirs):
            block = read(others)
            lengths = np.sqrt(np.einsum("ij,ij->i", block, block))
            near |= (rows @ block.T > above * lengths).any(axis=1)
        found += int(near.sum())
    return found


def count_equal(read: Read, ours: Sequence[Index], theirs: Index) -> list[int]:
    """How many of the rows of each of `ours` are equal to a row of `theirs`, to the last bit (by a fingerprint of 64
    bits)."""
    known = _fingerprints(read, theirs)
    return [int(np.isin(_fingerprints(read, index), known).sum()) for index in ours]


def rows_looked_at(ours: int, theirs: int, d_in: int) -> int:
    """How many of the rows `ours` are compared with all of `theirs`."""
    return min(ours, max(1, int(MOST_PRODUCTS / max(1, theirs * d_in))))


def _fingerprints(read: Read, index: Index) -> npt.NDArray[np.uint64]:
    parts = [_mixed(read(block)) for block in _blocks(index)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _mixed(rows: Floats) -> npt.NDArray[np.uint64]:
    """A sum of the bits of every value times an odd number of its own, spread over 64 bits."""
    odd = np.random.Generator(np.random.PCG64(0)).integers(0, 2**64, rows.shape[1], np.uint64) | np.uint64(1)
    bits = np.ascontiguousarray(rows).view(np.uint32)
    mixed: npt.NDArray[np.uint64] = np.einsum("ij,j->i", bits, odd)
    return mixed


def _blocks(index: Index) -> Iterator[Index]:
    for start in range(0, len(index), BLOCK):
        yield index[start : start + BLOCK]


def _unit(rows: Floats) -> Floats:
    """Return rows scaled to length 1; a row of zeros stays zero and has no neighbour."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
