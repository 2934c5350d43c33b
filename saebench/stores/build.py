"""Building an entry of the cache: read the texts, hand out pieces to encoders, put pieces together. No torch.

Every step ends with a rename, so that a kill at any moment loses at most the pieces in flight, and the finished entry
is the same to the byte however often that happened.
"""

from __future__ import annotations

import hashlib
import os
import queue
import shutil
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores import children
from saebench.stores.children import Child, Inbox, Message
from saebench.stores.entry import (
    ROWS_PER_PART,
    ROWS_PER_SHARD,
    File,
    Manifest,
    Shard,
    digest_of,
    has_content,
    part_name,
    read_hashes,
)
from saebench.stores.progress import Progress, Tell
from saebench.stores.read import ENVIRONMENT as READER_ENVIRONMENT
from saebench.stores.read import settle

Job = dict[str, Any]

IN_FLIGHT = 2
"""Jobs an encoder has at a time: it prepares the second while it computes the first."""
SPARE_BYTES = 256 << 20
"""Kept free on the disk."""


class Build:
    """One call of `cache.build` that found work to do; holds the entry's lock."""

    def __init__(self, data: DataConfig, folder: Path, key: dict[str, Any], devices: Sequence[str], tell: Tell) -> None:
        self.data, self.folder, self.key, self.tell = data, folder, key, tell
        self.devices = list(devices) or ["cpu"]
        self.inbox: Inbox = queue.SimpleQueue()
        self.children: list[Child] = []
        self.waiting: list[Child] = []
        """Encoders that have not said yet that they are ready."""

    def run(self) -> None:
        """Raises DataError; a new entry that got nowhere is removed again."""
        try:
            (self.folder / "parts").mkdir(parents=True, exist_ok=True)
            self._encode(self._texts(*self._sound(Manifest.read(self.folder))))
        except DataError:
            self._forget_if_empty()
            raise
        finally:
            for child in self.children:
                child.close()
        self._sweep_up()

    # --- what is there already ---------------------------------------------------------------------------------------

    def _sound(self, manifest: Manifest | None) -> tuple[Manifest | None, bool]:
        """The manifest without rows whose file is damaged, and whether its texts will do."""
        if manifest is None or manifest.key != self.key:
            return None, False
        shards = [self._without_damage(shard) for shard in manifest.shards]
        if shards != list(manifest.shards):
            manifest = manifest.model_copy(update={"shards": tuple(shards)})
            manifest.write(self.folder)
        texts = [file for shard in shards for file in (shard.texts, shard.hashes)]
        damaged = [file.name for file in texts if not has_content(self.folder, file)]
        if damaged:
            self._warn(f"{damaged[0]} in {self.folder.name} is damaged: the texts are read again")
        return manifest, not damaged and manifest.examples(self.data) is not None

    def _without_damage(self, shard: Shard) -> Shard:
        if shard.rows is None or has_content(self.folder, shard.rows):
            return shard
        self._warn(f"{shard.rows.name} in {self.folder.name} is damaged: {shard.encoded:,} texts are encoded again")
        return shard.model_copy(update={"rows": None, "encoded": 0, "encoded_digest": ""})

    def _warn(self, message: str) -> None:
        self.tell(Progress("verifying", 0, None, 0.0, message, warning=True))

    # --- texts -------------------------------------------------------------------------------------------------------

    def _texts(self, old: Manifest | None, will_do: bool) -> Manifest:
        """A manifest with enough texts: the old one, or one from a new pass that keeps the rows of unchanged texts."""
        if old is not None and will_do:
            return old
        self._start_encoders()  # they load while the texts are read
        reading = self.folder / "reading"
        shutil.rmtree(reading, ignore_errors=True)
        reading.mkdir()
        try:
            found = self._read(reading)
            shards = [Shard.model_validate(one) for one in found["shards"]]
            for file in (file for shard in shards for file in shard.files()):
                (reading / file.name).replace(self.folder / file.name)
        finally:
            shutil.rmtree(reading, ignore_errors=True)
        kept = old.shards if old is not None else ()
        manifest = Manifest(
            key=self.key,
            label_column=self.data.dataset.label_column,
            cap=max(self.data.num_examples, old.cap if old else 0),
            counts=found["counts"],
            d_in=old.d_in if old else None,
            encoder=old.encoder if old else {},
            shards=tuple(self._with_rows(shard, kept[i] if i < len(kept) else None) for i, shard in enumerate(shards)),
        )
        manifest.write(self.folder)
        return manifest

    def _read(self, reading: Path) -> Message:
        reader = self._child("saebench.stores.read", "the reader of texts", READER_ENVIRONMENT)
        cap = max(self.data.num_examples, 0)
        reader.send({"data": self.data.model_dump(mode="json"), "folder": str(reading)})
        started = time.monotonic()
        self.tell(Progress("texts", 0, cap, 0.0))
        while True:
            child, message = self.inbox.get()
            if child is reader and message["type"] == "done":
                return message
            if child is reader and message["type"] == "progress":
                rate = message["kept"] / (time.monotonic() - started)
                self.tell(Progress("texts", message["kept"], cap, rate))
            elif message["type"] == "ready":
                self._ready(child, message)
            elif message["type"] in ("error", "gone"):
                raise self._failure(child, message)

    def _with_rows(self, shard: Shard, old: Shard | None) -> Shard:
        """Rows that were encoded from the same texts stay."""
        if old is None or old.rows is None or old.encoded > shard.count:
            return shard
        if digest_of(read_hashes(self.folder, [shard])[: old.encoded]) != old.encoded_digest:
            self._warn(f"the dataset has changed: {old.encoded:,} texts are encoded again")
            return shard
        return shard.model_copy(update={"rows": old.rows, "encoded": old.encoded, "encoded_digest": old.encoded_digest})

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode(self, manifest: Manifest) -> None:
        limit = min(manifest.count, self.data.num_examples)
        jobs = [self._jobs(manifest, number, limit) for number in range(-(-limit // ROWS_PER_SHARD))]
        if not any(jobs):
            return
        self._start_encoders()
        manifest = self._await_first(manifest)
        self._check_disk(manifest, sum(job["stop"] - job["start"] for group in jobs for job in group))
        work = _Work(jobs, self._find_part)
        started, total = time.monotonic(), limit
        before = limit - sum(job["stop"] - job["start"] for job in work.todo)
        rows = 0
        idle = [child for child in self.children if child not in self.waiting and child.name in self.devices]
        for child in idle:
            work.hand_out(child)
        manifest = self._merge(manifest, work)
        while work.missing:
            child, message = self.inbox.get()
            if message["type"] == "ready":
                self._ready(child, message, manifest)
                work.hand_out(child)
            elif message["type"] == "progress" and "rows" in message:
                rows += message["rows"]
                rate = rows / (time.monotonic() - started)
                self.tell(Progress("encoding", min(before + rows, total), total, rate))
            elif message["type"] == "done" and "job" in message:
                work.finish(child, message["job"], message["name"])
                work.hand_out(child)
                manifest = self._merge(manifest, work)
            elif message["type"] == "error":
                raise self._failure(child, message)
            elif message["type"] == "gone" and child.name in self.devices:
                self._lose(child, message, work)
        self.tell(Progress("encoding", total, total, rows / max(time.monotonic() - started, 1e-9)))

    def _jobs(self, manifest: Manifest, number: int, limit: int) -> list[Job]:
        """Pieces of one shard that are not encoded yet, cut at multiples of 4,096 rows."""
        shard = manifest.shards[number]
        end = min(shard.count, limit - number * ROWS_PER_SHARD)
        if shard.encoded >= end:
            return []
        hashes = read_hashes(self.folder, [shard])
        cuts = [shard.encoded, *range((shard.encoded // ROWS_PER_PART + 1) * ROWS_PER_PART, end, ROWS_PER_PART), end]
        return [
            {"shard": number, "start": a, "stop": b, "digest": digest_of(hashes[a:b]), "texts": shard.texts.name}
            for a, b in pairwise(cuts)
        ]

    def _find_part(self, job: Job) -> str | None:
        """A piece that an earlier build left, if its content is what its name says."""
        for path in sorted((self.folder / "parts").glob(f"{part_name(job)}-*.npy")):
            if part_is_sound(path):
                return path.name
            self._warn(f"{path.name} is damaged: {job['stop'] - job['start']:,} texts are encoded again")
            path.unlink()
        return None

    def _merge(self, manifest: Manifest, work: _Work) -> Manifest:
        """Put every shard together whose pieces are all there."""
        for number in work.whole():
            shard, names = manifest.shards[number], work.take(number)
            sources = [self.folder / "parts" / name for name in names]
            damaged = [path for path in sources if not part_is_sound(path)]
            if damaged:
                raise DataError(f"cache {damaged[0]}: changed while the entry was built")
            if shard.rows is not None:
                sources.insert(0, self.folder / shard.rows.name)
            rows, file = join(sources, self.folder / f"{number:05d}-rows")
            digest = digest_of(read_hashes(self.folder, [shard])[:rows])
            new = shard.model_copy(update={"rows": file, "encoded": rows, "encoded_digest": digest})
            shards = [*manifest.shards[:number], new, *manifest.shards[number + 1 :]]
            manifest = manifest.model_copy(update={"shards": tuple(shards)})
            manifest.write(self.folder)
            for name in names:
                (self.folder / "parts" / name).unlink()
        return manifest

    def _check_disk(self, manifest: Manifest, rows: int) -> None:
        size = (manifest.d_in or 0) * np.dtype(self.data.dtype).itemsize
        needed = (rows + 2 * ROWS_PER_SHARD if rows > ROWS_PER_SHARD else 2 * rows) * size + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise DataError(
                f"cache {self.folder.parent}: {rows:,} embeddings need {needed / 1e9:,.1f} GB, "
                f"{free / 1e9:,.1f} GB are free"
            )

    # --- processes ---------------------------------------------------------------------------------------------------

    def _child(self, module: str, name: str, environment: dict[str, str]) -> Child:
        child = children.start(module, name, environment, self.inbox)
        self.children.append(child)
        return child

    def _start_encoders(self) -> None:
        if any(child.name in self.devices for child in self.children):
            return
        for device in self.devices:
            kind, _, which = device.partition(":")
            environment = {"CUDA_VISIBLE_DEVICES": which} if kind == "cuda" and which else {}
            child = self._child("saebench.stores.encode", device, environment)
            self.waiting.append(child)
            inside = "cuda:0" if kind == "cuda" else device
            data = self.data.model_dump(mode="json")
            child.send({"data": data, "device": inside, "folder": str(self.folder)})

    def _await_first(self, manifest: Manifest) -> Manifest:
        """Wait for one encoder, which says how wide its rows are."""
        self.tell(Progress("loading", 0, None, 0.0))
        while len(self.waiting) == len(self.devices):
            child, message = self.inbox.get()
            if message["type"] == "ready":
                self._ready(child, message)
            elif message["type"] == "error" or (message["type"] == "gone" and child.name in self.devices):
                raise self._failure(child, message)
        d_in, info = self._told
        if manifest.d_in is None or manifest.encoded == 0:
            manifest = manifest.model_copy(update={"d_in": d_in, "encoder": info})
            manifest.write(self.folder)
        self._check_width(manifest, d_in)
        return manifest

    def _ready(self, child: Child, message: Message, manifest: Manifest | None = None) -> None:
        self.waiting.remove(child)
        self._told: tuple[int, dict[str, Any]] = (message["d_in"], message["info"])
        if manifest is not None:
            self._check_width(manifest, message["d_in"])

    def _check_width(self, manifest: Manifest, d_in: int) -> None:
        if manifest.d_in != d_in:
            raise DataError(
                f"cache {self.folder}: its rows have {manifest.d_in} values, but model {self.data.model} gives {d_in}; "
                f"`saebench cache gc {self.folder.name}` removes it"
            )

    def _lose(self, child: Child, message: Message, work: _Work) -> None:
        """An encoder died: the others take over its pieces; without others, that is the end."""
        self.children.remove(child)
        child.close()
        if child in self.waiting:
            self.waiting.remove(child)
        if not any(other.name in self.devices for other in self.children):
            raise self._failure(child, message)
        self._warn(f"the encoder on {child.name} {message['why']}; the others go on")
        work.give_back(child)
        for other in self.children:
            if other.name in self.devices and other not in self.waiting:
                work.hand_out(other)

    def _failure(self, child: Child, message: Message) -> DataError:
        if message["type"] == "error":
            return DataError(message["message"])
        who = f"the encoder on {child.name}" if child.name in self.devices else child.name
        return DataError(f"{who} {message['why']}")

    # --- tidiness ----------------------------------------------------------------------------------------------------

    def _forget_if_empty(self) -> None:
        """Remove an entry in which nothing is encoded."""
        manifest = Manifest.read(self.folder)
        encoded = manifest is not None and any(shard.encoded for shard in manifest.shards)
        if not encoded and not list((self.folder / "parts").glob("*.npy")):
            (self.folder / "manifest.json").unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _sweep_up(self) -> None:
        """Remove what a finished entry does not need."""
        manifest = Manifest.read(self.folder)
        assert manifest is not None
        needed = {"manifest.json", *(file.name for shard in manifest.shards for file in shard.files())}
        for path in self.folder.iterdir():
            if path.name not in needed:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


class _Work:
    """Which pieces are to do, in whose hands, and done."""

    def __init__(self, jobs: Sequence[Sequence[Job]], find: Callable[[Job], str | None]) -> None:
        self.parts: dict[int, dict[int, str | None]] = {}
        """Shard -> first row -> file of the piece, once it is there."""
        self.todo: deque[Job] = deque()
        self._hands: dict[Child, list[Job]] = {}
        for job in (job for group in jobs for job in group):
            found = find(job)
            self.parts.setdefault(job["shard"], {})[job["start"]] = found
            if found is None:
                self.todo.append(job)

    @property
    def missing(self) -> bool:
        return bool(self.parts)

    def hand_out(self, child: Child) -> None:
        hand = self._hands.setdefault(child, [])
        while self.todo and len(hand) < IN_FLIGHT:
            job = self.todo.popleft()
            hand.append(job)
            child.send(job)

    def finish(self, child: Child, job: Job, name: str) -> None:
        self._hands[child].remove(job)
        self.parts[job["shard"]][job["start"]] = name

    def give_back(self, child: Child) -> None:
        self.todo.extendleft(reversed(self._hands.pop(child, [])))

    def whole(self) -> list[int]:
        """Shards whose pieces are all there."""
        return [number for number, pieces in self.parts.items() if None not in pieces.values()]

    def take(self, number: int) -> list[str]:
        pieces = self.parts.pop(number)
        return [name for _, name in sorted(pieces.items()) if name is not None]


def part_is_sound(path: Path) -> bool:
    """Whether a piece's content is what the end of its name says."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(path.stem.rpartition("-")[2])
    except OSError:
        return False


def join(sources: Sequence[Path], aside: Path) -> tuple[int, File]:
    """Concatenate the rows of .npy files into one; returns their number and the new file, already in its place."""
    arrays = [np.load(path, mmap_mode="r") for path in sources]
    rows = sum(len(array) for array in arrays)
    with aside.open("wb") as file:
        _write_header(file, (rows, arrays[0].shape[1]), arrays[0].dtype)
        for array in arrays:
            file.write(np.ascontiguousarray(array).data)
        file.flush()
        os.fsync(file.fileno())
    return rows, settle(aside, ".npy")


def _write_header(file: IO[bytes], shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
