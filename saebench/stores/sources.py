"""Rows that stay in files of the user: their place, whether the files have changed, and reading them. No torch.

An entry of such rows holds their numbers in the files (`Shard.numbers`) and what the files were when it was built
(`Manifest.sources`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saebench.arrays import files_of, layout_of
from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores.digests import sha256_of
from saebench.stores.manifest import Source

Rows = npt.NDArray[Any]
Index = npt.NDArray[np.int64]
STORABLE = {"float32": ("<f2", "<f4"), "float16": ("<f2",)}
"""`data.dtype` -> types of a file whose values it holds exactly."""


class MappedRows:
    """The rows of one shard in the user's files."""

    def __init__(self, maps: Sequence[Rows], numbers: Index) -> None:
        self._maps, self._numbers = maps, numbers
        self._starts = np.cumsum([0, *map(len, maps)])
        self.dtype = maps[0].dtype

    def take(self, local: Index, out: Rows) -> None:
        """Copy the rows with these (ascending) places in the shard."""
        numbers = self._numbers[local]
        cuts = np.searchsorted(numbers, self._starts)
        for rows, first, start, stop in zip(self._maps, self._starts, cuts, cuts[1:], strict=False):
            if start < stop:
                take_rows(rows, numbers[start:stop] - first, out[start:stop])


def take_rows(shard: Rows | MappedRows, local: Index, out: Rows) -> None:
    """Copy the rows with these (ascending) numbers into float32 `out`."""
    if isinstance(shard, MappedRows):
        shard.take(local, out)
    elif shard.dtype == np.float32:
        np.take(shard, local, axis=0, out=out, mode="clip")  # clip: without a second buffer
    else:
        out[:] = shard[local]


def sources_of(data: DataConfig, digests: Sequence[str]) -> tuple[Source, ...]:
    """Return the files of `data.embeddings`, with these checksums, if their rows can be mapped; else an empty tuple."""
    assert data.embeddings is not None
    found = []
    for file, sha256 in zip(files_of(data.embeddings), digests, strict=True):
        layout, stat = layout_of(file), file.stat()
        if layout is None or layout.dtype not in STORABLE[data.dtype]:
            return ()
        found.append(
            Source(
                path=str(file.absolute()),
                bytes=stat.st_size,
                mtime_ns=stat.st_mtime_ns,
                ctime_ns=stat.st_ctime_ns,
                sha256=sha256,
                dtype=layout.dtype,
                offset=layout.offset,
                count=layout.count,
            )
        )
    return tuple(found) if len({source.dtype for source in found}) == 1 else ()


def map_sources(sources: Sequence[Source], d_in: int) -> list[Rows]:
    """Return the (count, d_in) rows of each file, memory-mapped and read-only."""
    try:
        maps = [np.memmap(s.path, s.dtype, "r", s.offset, (s.count, d_in)) for s in sources]
    except (OSError, ValueError) as error:  # it changed after the check
        raise DataError(f"data.embeddings: cannot be mapped: {error}; run the same command again") from error
    return [np.asarray(rows) for rows in maps]


def check_sources(sources: Sequence[Source], cache_dir: Path) -> None:
    """Raise DataError if a file has vanished or has other content. Reads a file only if its size is the same and its
    times are not."""
    for source in sources:
        if (problem := problem_of(source, cache_dir)) is not None:
            raise DataError(
                f"data.embeddings: {source.path}: {problem}; its rows are not copied into the cache. Put it back as it "
                "was, or, for a new sweep, build the entry again: saebench cache build SPEC"
            )


def problem_of(source: Source, cache_dir: Path) -> str | None:
    """Return what is wrong with the file; None if it has the content with which the entry was built."""
    try:
        stat = Path(source.path).stat()
        if stat.st_size != source.bytes:
            return f"has changed: {stat.st_size:,} bytes, {source.bytes:,} when the entry was built"
        if (stat.st_mtime_ns, stat.st_ctime_ns) == (source.mtime_ns, source.ctime_ns):
            return None
        same = sha256_of(Path(source.path), cache_dir) == source.sha256
    except FileNotFoundError:
        return "no such file: it was moved or removed since the entry was built"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return None if same else "has changed: its content has another checksum than when the entry was built"
