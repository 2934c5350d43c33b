"""The files of an entry of the embedding cache, and the manifest that lists them. No torch.

    <cache>/embeddings/<key>/
        manifest.json                       lists the files; replaced by rename, so it is never partly written
        00000-texts-<sha>.parquet           texts (and labels) of rows 0 to 65,535, in the order of the stream
        00000-hashes-<sha>.npy              uint64 hash of each text
        00000-rows-<sha>.npy                (rows, d_in) embeddings
        00000-numbers-<sha>.npy             instead of them: int64 numbers of the rows in the user's files
        parts/                              while it is being encoded: pieces of 1,024 rows, each with its digest
    <cache>/embeddings/<key>.lock           held while the entry is being built
    <cache>/embeddings/<key>.verified       files whose checksums were verified since the machine started
    <cache>/embeddings/<key>.twins          counts of near and equal rows of different parts
    <cache>/embeddings/<key>.keep-*.npy     mask of the first N texts that `data.deduplicate` keeps
    <cache>/embeddings/<key>.used           mtime: last use; every reader of the entry holds a shared lock on it

Files carry (the start of) the SHA-256 of their content in their name and are never changed, only replaced by others.
"""

from __future__ import annotations

import errno
import hashlib
import io
from collections.abc import Callable, Sequence
from io import BufferedRandom
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from saebench.config import Config, DataConfig
from saebench.runs.durable import replacing, write_text
from saebench.stores.seal import seal, unseal

ROWS_PER_SHARD = 65_536
ROWS_PER_PART = 1_024
MANIFEST = "manifest.json"


class File(Config):
    """A file of an entry."""

    name: str
    bytes: int
    sha256: str


class Shard(Config):
    """Up to 65,536 consecutive texts, and those of their embeddings that exist."""

    count: int
    texts: File
    hashes: File
    encoded: int = 0
    rows: File | None = None
    numbers: File | None = None
    """Instead of `rows`: where each row is in the files of `Manifest.sources`."""
    encoded_digest: str = ""
    """Digest of the texts that the rows belong to (see `digest_of`)."""
    truncated: int = 0
    """Number of encoded texts longer than the model's limit: only their beginning was encoded."""

    def files(self) -> list[File]:
        return [file for file in (self.texts, self.hashes, self.rows, self.numbers) if file is not None]


class Source(Config):
    """A file of the user with rows that the entry maps instead of copying them."""

    path: str
    """Absolute."""
    bytes: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    dtype: str
    offset: int
    """Bytes before the first value."""
    count: int
    """Number of rows; they follow each other without gaps."""


class Manifest(Config):
    """The manifest of an entry: its identity, shards and counts."""

    identity: dict[str, Any]
    """Everything that determines the rows (see keys.py)."""
    named: dict[str, str]
    """Names of model and dataset, for messages: the identity may hold only checksums of them."""
    label_column: str | None
    cap: int
    """`num_examples` with which the texts were read."""
    counts: dict[str, int]
    """Rows read, kept and left out, by reason (see texts.Counts)."""
    d_in: int | None = None
    encoder: dict[str, Any] = Field(default_factory=dict)
    """max_seq_length and library versions used for encoding."""
    fingerprint: tuple[float, ...] = ()
    """First values of the model's embedding of a fixed text, to detect another model of the same name."""
    shards: tuple[Shard, ...] = ()
    sources: tuple[Source, ...] = ()
    """Files of the user that hold the rows; empty if the entry does."""

    @property
    def count(self) -> int:
        """Number of distinct texts."""
        return sum(shard.count for shard in self.shards)

    @property
    def encoded(self) -> int:
        """Number of rows from the first on without a gap."""
        total = 0
        for shard in self.shards:
            total += shard.encoded
            if shard.encoded < shard.count:
                break
        return total

    def examples(self, data: DataConfig) -> int | None:
        """Return how many of the texts `data` uses; None if the texts have to be read again."""
        labels = data.dataset.label_column
        if labels not in (None, self.label_column) or (self.count >= self.cap and data.num_examples > self.count):
            return None
        return min(data.num_examples, self.count)

    def names(self) -> set[str]:
        """Return the names of the entry's files."""
        return {MANIFEST, *(file.name for shard in self.shards for file in shard.files())}

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the manifest of an entry; None if it is missing or damaged."""
        try:
            return cls.model_validate(unseal((folder / MANIFEST).read_bytes()))
        except (OSError, ValueError):
            return None

    def write(self, folder: Path) -> None:
        write_text(folder / MANIFEST, seal(self.model_dump(mode="json")))


def read_hashes(folder: Path, shards: Sequence[Shard]) -> npt.NDArray[np.uint64]:
    """Return the hashes of all texts of the shards. Raises OSError for a damaged file: hashes decide the part."""
    parts = [np.load(io.BytesIO(_read_whole(folder, shard.hashes))) for shard in shards]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _read_whole(folder: Path, file: File) -> bytes:
    content = (folder / file.name).read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise OSError(errno.EIO, "the content has another checksum", str(folder / file.name))
    return content


def digest_of(hashes: npt.NDArray[np.uint64]) -> str:
    """Return 12 hexadecimal digits that identify a sequence of texts by their hashes."""
    return hashlib.sha256(hashes.astype("<u8").tobytes()).hexdigest()[:12]


def part_name(job: dict[str, Any], truncated: int | str) -> str:
    """Return the name of a part file: the rows, a digest of their texts (so that parts of other texts do not match),
    and the number of texts longer than the model's limit; pass "*" for a glob pattern over that number."""
    return f"{job['shard']:05d}-{job['start']:05d}-{job['stop']:05d}-{job['digest']}-cut{truncated}"


def truncated_in(part: str) -> int:
    """Return the number of texts longer than the model's limit, from the name of a part file."""
    return int(part.split("-")[4].removeprefix("cut"))


def write_file(folder: Path, stem: str, suffix: str, write: Callable[[BufferedRandom], object]) -> File:
    """Write a new file in `folder` with `write` and sync it; its name contains the start of its checksum."""
    with replacing(folder / f"{stem}{suffix}") as new:
        write(new.file)
        new.file.seek(0)
        digest = hashlib.file_digest(new.file, "sha256").hexdigest()
        size = new.file.tell()
        new.target = folder / f"{stem}-{digest[:12]}{suffix}"
    return File(name=new.target.name, bytes=size, sha256=digest)


def has_size(folder: Path, file: File) -> bool:
    """Return whether the file exists with its size; takes microseconds."""
    try:
        return (folder / file.name).stat().st_size == file.bytes
    except OSError:
        return False


def has_content(folder: Path, file: File) -> bool:
    """Return whether the file's content has its checksum (reads all of it)."""
    try:
        with (folder / file.name).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == file.sha256
    except OSError:
        return False
