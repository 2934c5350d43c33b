"""An entry of the embedding cache: its files, its manifest, and reading it. No torch.

    <cache>/embeddings/<key>/
        manifest.json                       lists the files; replaced by rename, so it is never partly written
        00000-texts-<sha>.parquet           texts (and labels) of rows 0 to 65,535, in the order of the stream
        00000-hashes-<sha>.npy              uint64 hash of each text
        00000-rows-<sha>.npy                (rows, d_in) embeddings
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
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from io import BufferedRandom
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field

from saebench.config import Config, DataConfig
from saebench.errors import DataError
from saebench.runs.durable import replacing, write_text
from saebench.stores.in_use import Hold
from saebench.stores.seal import seal, unseal
from saebench.stores.texts import EVALUATED, Division, Part, Text

ROWS_PER_SHARD = 65_536
ROWS_PER_PART = 1_024
MANIFEST = "manifest.json"
SAME_ROWS = 1_000
"""Number of rows of a part compared to find out whether all its rows are equal."""

Rows = npt.NDArray[Any]
Index = npt.NDArray[np.int64]


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
    encoded_digest: str = ""
    """Digest of the texts that the rows belong to (see `digest_of`)."""
    truncated: int = 0
    """Number of encoded texts longer than the model's limit: only their beginning was encoded."""

    def files(self) -> list[File]:
        return [self.texts, self.hashes] + ([self.rows] if self.rows else [])


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


@dataclass(frozen=True)
class CacheEntry:
    """The first `count` texts of an entry, less those that `data.deduplicate` leaves out, divided into parts."""

    directory: Path
    d_in: int
    num_train: int
    num_validation: int
    num_test: int
    info: dict[str, Any]
    """Counts of the rows read (kept, duplicate, empty, non_string; for the whole entry, which may be longer), model,
    dataset, and the settings of the encoding."""
    manifest: Manifest
    count: int
    division: Division
    keep: npt.NDArray[np.bool_] | None = field(default=None, repr=False, compare=False)
    """(count,) False for near-duplicates of an earlier text; None if all texts are used."""
    hold: Hold | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, folder: Path, manifest: Manifest, data: DataConfig, hold: Hold | None = None) -> Self | None:
        """Return the entry as `data` uses it; None if it is not complete or a file is missing or has the wrong size.
        Raises OSError if a file disappears meanwhile, or hashes are damaged."""
        count = manifest.examples(data)
        if count is None or manifest.encoded < count or manifest.d_in is None or count == 0:
            return None
        needed = manifest.shards[: -(-count // ROWS_PER_SHARD)]
        if not all(has_size(folder, file) for shard in needed for file in shard.files()):
            return None
        division = Division(data.parts.validation, data.parts.test)
        hashes = read_hashes(folder, needed)[:count]
        keep = None
        if data.deduplicate is not None:
            if (keep := read_keep(keep_file(folder, hashes, data.deduplicate), count)) is None:
                return None
            hashes = hashes[keep]
        test = int((hashes < np.uint64(division.test_below)).sum())
        train = int((hashes >= np.uint64(division.train_from)).sum())
        validation = len(hashes) - test - train
        info = {
            **manifest.counts,
            "truncated": sum(shard.truncated for shard in needed),
            **manifest.encoder,
            "model": data.model,
            "model_revision": data.revision,
            "dataset": data.dataset.path,
            "dataset_revision": data.dataset.revision,
            "cache_key": folder.name,
        }
        if keep is not None:
            info |= {"near_duplicate": int((~keep).sum()), "deduplicate": data.deduplicate}
        info |= read_twins(folder).get(name_of(hashes, division), {})
        return cls(folder, manifest.d_in, train, validation, test, info, manifest, count, division, keep, hold)

    @property
    def cache_key(self) -> str:
        return self.directory.name

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards that hold the first `count` rows."""
        return self.manifest.shards[: -(-self.count // ROWS_PER_SHARD)]

    @cached_property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(count,) hashes of the texts."""
        return read_hashes(self.directory, self.shards)[: self.count]

    @cached_property
    def train_index(self) -> Index:
        """(num_train,) row numbers of the training texts, ascending."""
        return self._where(self.hashes >= np.uint64(self.division.train_from))

    @cached_property
    def validation_index(self) -> Index:
        """(num_validation,) row numbers of the validation texts, ascending."""
        below, above = np.uint64(self.division.train_from), np.uint64(self.division.test_below)
        return self._where((self.hashes < below) & (self.hashes >= above))

    @cached_property
    def test_index(self) -> Index:
        """(num_test,) row numbers of the test texts, ascending."""
        return self._where(self.hashes < np.uint64(self.division.test_below))

    def check(self, data: DataConfig) -> None:
        """Raise DataError if no SAE can be trained or evaluated on the entry: a part has no texts, or only equal
        rows."""
        check_counts(data, self.num_train, self.num_validation, self.num_test)
        for part in ("train", *EVALUATED):
            rows = self.read(self.index_of(part)[:SAME_ROWS])
            if (rows == rows[0]).all():
                raise DataError(
                    f"model {data.model}: gives the same embedding for the first {len(rows):,} of "
                    f"{len(self.index_of(part)):,} {part} texts: there is nothing to reconstruct; give more texts, or "
                    "another model"
                )

    def index_of(self, part: Part) -> Index:
        """Return the row numbers of a part."""
        index: Index = getattr(self, f"{part}_index")
        return index

    def _where(self, chosen: npt.NDArray[np.bool_]) -> Index:
        return np.flatnonzero(chosen if self.keep is None else chosen & self.keep)

    def sample_index(self, n: int) -> Index:
        """Return the row numbers of min(n, num_train) training texts: those of the lowest hashes, so that the sample
        depends only on the data."""
        if n >= self.num_train:
            return self.train_index
        lowest = np.argpartition(self.hashes[self.train_index], n)[:n]
        return np.sort(self.train_index[lowest])

    def rows(self) -> list[Rows]:
        """Return the (rows, d_in) embeddings of each shard, memory-mapped and read-only."""
        names = [shard.rows.name for shard in self.shards if shard.rows]
        return [np.asarray(np.load(self.directory / name, mmap_mode="r")) for name in names]

    def read(self, index: Index) -> npt.NDArray[np.float32]:
        """Return (len(index), d_in) the rows with these numbers, which must be ascending."""
        out = np.empty((len(index), self.d_in), np.float32)
        shards = self.rows()
        cuts = np.searchsorted(index, np.arange(len(shards) + 1) * ROWS_PER_SHARD)
        for number, shard in enumerate(shards):
            start, stop = cuts[number], cuts[number + 1]
            out[start:stop] = shard[index[start:stop] - number * ROWS_PER_SHARD]
        return out

    def texts(self) -> Iterator[Text]:
        """Yield all `count` texts in the stream's order, also those that `deduplicate` leaves out: text i is row i."""
        import pyarrow.parquet

        left = self.count
        for shard in self.shards:
            hashes = np.load(self.directory / shard.hashes.name)
            table = pyarrow.parquet.read_table(self.directory / shard.texts.name)
            columns = (table.column(name).to_pylist() for name in ("text", "label", "row"))
            for text, label, row, hash_ in zip(*columns, hashes.tolist(), strict=True):
                if left == 0:
                    return
                left -= 1
                yield Text(text, None if label is None else json.loads(label), hash_, row)

    def row_numbers(self, index: Index) -> list[int]:
        """Return the row numbers in the dataset (from 0) of these rows, to join results to the user's own table; for
        equal texts, that of the first."""
        column = self._column("row")
        return [column[i] for i in index.tolist()]

    def _column(self, name: str) -> list[Any]:
        import pyarrow.parquet

        tables = [pyarrow.parquet.read_table(self.directory / one.texts.name, columns=[name]) for one in self.shards]
        return [value for table in tables for value in table.column(name).to_pylist()]

    def labels(self, index: Index) -> list[Any] | None:
        """Return the labels of the given rows; None if the entry was read without a label column."""
        if self.manifest.label_column is None:
            return None
        column = self._column("label")
        return [None if column[i] is None else json.loads(column[i]) for i in index.tolist()]


def check_counts(data: DataConfig, train: int, validation: int, test: int) -> None:
    """Raise DataError if a part is empty: parts are chosen by hash, so with few texts a part may get none."""
    for part, count in (("validation", validation), ("test", test)):
        if count == 0:
            share = getattr(data.parts, part)
            raise DataError(
                f"data.holdout: the {part} part is empty: {share:.3g} of {train + validation + test:,} texts, chosen "
                "by their hash; give more texts or a larger share"
            )


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
