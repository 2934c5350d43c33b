"""Pieces of a shard: their assignment to encoders, and joining them. No torch."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from io import BufferedRandom
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from saebench.stores.child_process import Child
from saebench.stores.manifest import ROWS_PER_PART, ROWS_PER_SHARD, File, Shard, digest_of, read_hashes, write_file

Job = dict[str, Any]
"""{shard, start, stop, digest, texts}: rows start to stop of a shard, encoded from a file of texts."""

IN_FLIGHT = 2
"""Jobs an encoder has at a time: it prepares the second while it computes the first."""


def cut(folder: Path, number: int, shard: Shard, limit: int) -> list[Job]:
    """Return jobs for the rows of a shard that are not encoded yet (up to row `limit` of the entry), cut at multiples
    of 1,024."""
    end = min(shard.count, limit - number * ROWS_PER_SHARD)
    if shard.encoded >= end:
        return []
    hashes = read_hashes(folder, [shard])
    first = (shard.encoded // ROWS_PER_PART + 1) * ROWS_PER_PART
    cuts = [shard.encoded, *range(first, end, ROWS_PER_PART), end]
    return [
        {"shard": number, "start": a, "stop": b, "digest": digest_of(hashes[a:b]), "texts": shard.texts.name}
        for a, b in pairwise(cuts)
    ]


class Work:
    """The pieces of a build: waiting, with an encoder, or done."""

    def __init__(self, jobs: Sequence[Job], find: Callable[[Job], str | None]) -> None:
        self._parts: dict[int, dict[int, str | None]] = {}
        """Shard -> first row -> file of the piece, once it exists."""
        self._waiting: deque[Job] = deque()
        self._assigned: dict[Child, list[Job]] = {}
        for job in jobs:
            found = find(job)
            self._parts.setdefault(job["shard"], {})[job["start"]] = found
            if found is None:
                self._waiting.append(job)
        self.rows = sum(job["stop"] - job["start"] for job in self._waiting)
        """Rows that had to be encoded when the work began."""

    @property
    def unfinished(self) -> bool:
        return bool(self._parts)

    def hand_out(self, child: Child) -> None:
        hand = self._assigned.setdefault(child, [])
        while self._waiting and len(hand) < IN_FLIGHT:
            hand.append(self._waiting.popleft())
            child.send(hand[-1])

    def mark_done(self, child: Child, job: Job, name: str) -> None:
        self._assigned[child].remove(job)
        self._parts[job["shard"]][job["start"]] = name

    def requeue(self, child: Child) -> None:
        """Put the pieces of a dead encoder back at the front of the queue."""
        self._waiting.extendleft(reversed(self._assigned.pop(child, [])))

    def complete_shards(self) -> list[int]:
        """Return the shards that have all their pieces."""
        return [number for number, pieces in self._parts.items() if None not in pieces.values()]

    def take(self, number: int) -> list[str]:
        """Return the files of a complete shard's pieces in order, and drop the shard from the list."""
        return [name for _, name in sorted(self._parts.pop(number).items()) if name is not None]


def is_sound(path: Path) -> bool:
    """Return whether a piece's content has the checksum in its name."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rpartition("-")[2])
    except OSError:
        return False


def join(sources: Sequence[Path], folder: Path, stem: str) -> tuple[int, File]:
    """Concatenate the rows of .npy files into one in `folder`; returns their number and the new file."""
    arrays = [np.load(path, mmap_mode="r") for path in sources]
    rows = sum(len(array) for array in arrays)
    dtype = np.lib.format.dtype_to_descr(arrays[0].dtype)
    header = {"descr": dtype, "fortran_order": False, "shape": (rows, arrays[0].shape[1])}

    def write(file: BufferedRandom) -> None:
        np.lib.format.write_array_header_1_0(file, header)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)

    return rows, write_file(folder, stem, ".npy", write)
