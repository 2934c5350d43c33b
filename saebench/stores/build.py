"""Build an entry of the cache: read the texts, send pieces to the encoders, join the encoded pieces. No torch.

Every step ends with a rename: a build that is killed loses at most the pieces that were being encoded, and the finished
entry has the same bytes however often that happens.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.stores import child_process
from saebench.stores.beside import beside
from saebench.stores.build_checks import check_disk, check_identity, check_model
from saebench.stores.child_process import Child, Inbox, Launch, Message
from saebench.stores.encoder_pool import EncoderPool, bfloat16_hint
from saebench.stores.in_use import nobody_holds
from saebench.stores.manifest import (
    MANIFEST,
    ROWS_PER_SHARD,
    Manifest,
    Shard,
    digest_of,
    has_content,
    part_name,
    read_hashes,
    truncated_in,
)
from saebench.stores.messages import place
from saebench.stores.pieces import Job, Work, cut, is_sound, join
from saebench.stores.progress import OnProgress, Progress
from saebench.stores.reader_process import ENVIRONMENT as READER_ENVIRONMENT


class Build:
    """One call of `cache.build` that found work to do; holds the entry's lock."""

    def __init__(
        self,
        data: DataConfig,
        folder: Path,
        identity: dict[str, Any],
        devices: Sequence[str | Launch],
        report: OnProgress,
    ) -> None:
        self.data, self.folder, self.identity, self.report = data, folder, identity, report
        self.parts = folder / "parts"
        self.inbox: Inbox = queue.SimpleQueue()
        self.devices = list(devices) or ["cpu"]
        self.encoders = EncoderPool(data, folder, self.devices, self.inbox)

    def run(self) -> None:
        """Raises DataError, or OSError if the folder cannot be written. A new entry without encoded texts is
        removed."""
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            old, texts_usable = self._drop_damaged(Manifest.read(self.folder))
            self._encode(self._texts(old, texts_usable))
        except (DataError, OSError):
            self._remove_if_empty()
            raise
        finally:
            self.encoders.close()
        self._remove_leftovers(old.names() if old else set())

    # --- what is there already ---------------------------------------------------------------------------------------

    def _drop_damaged(self, manifest: Manifest | None) -> tuple[Manifest | None, bool]:
        """Return the manifest without rows whose file is damaged, and whether its texts can be used as they are."""
        if manifest is None or manifest.identity != self.identity:
            if (self.folder / MANIFEST).exists():
                self._warn(f"{self.folder.name}/{MANIFEST} is damaged: everything is read and encoded again")
            return None, False
        shards = tuple(self._without_damage(shard) for shard in manifest.shards)
        if shards != manifest.shards:
            manifest = manifest.model_copy(update={"shards": shards})
            manifest.write(self.folder)
        texts = [file for shard in shards for file in (shard.texts, shard.hashes)]
        damaged = [file.name for file in texts if not has_content(self.folder, file)]
        if damaged:
            self._warn(f"{self.folder.name}/{damaged[0]} is damaged: the texts are read again")
        return manifest, not damaged and manifest.examples(self.data) is not None

    def _without_damage(self, shard: Shard) -> Shard:
        if shard.rows is None or has_content(self.folder, shard.rows):
            return shard
        self._warn(f"{self.folder.name}/{shard.rows.name} is damaged: {shard.encoded:,} texts are encoded again")
        return shard.model_copy(update={"rows": None, "encoded": 0, "encoded_digest": "", "truncated": 0})

    def _warn(self, message: str) -> None:
        self.report(Progress("verifying", 0, None, 0.0, message, warning=True))

    # --- texts -------------------------------------------------------------------------------------------------------

    def _texts(self, old: Manifest | None, texts_usable: bool) -> Manifest:
        """Return a manifest with enough texts: the old one, or a new one that keeps the rows of unchanged texts."""
        if old is not None and texts_usable:
            return old
        self.encoders.start()  # they load while the texts are read
        cap = max(self.data.num_examples, old.cap if old else 0)
        reading = self.folder / "reading"
        shutil.rmtree(reading, ignore_errors=True)
        reading.mkdir()
        try:
            found = self._read(reading, cap)
            check_identity(self.folder, self.data, self.identity)
            shards = [Shard.model_validate(one) for one in found["shards"]]
            for file in (file for shard in shards for file in shard.files()):
                (reading / file.name).replace(self.folder / file.name)
        finally:
            shutil.rmtree(reading, ignore_errors=True)
        kept = dict(enumerate(old.shards)) if old else {}
        manifest = Manifest(
            identity=self.identity,
            named={"model": self.data.model, "dataset": place(self.data.dataset).removeprefix("dataset ")},
            label_column=self.data.dataset.label_column,
            cap=cap,
            counts=found["counts"],
            d_in=old.d_in if old else None,
            encoder=old.encoder if old else {},
            fingerprint=old.fingerprint if old else (),
            shards=tuple(self._with_rows(shard, kept.get(number)) for number, shard in enumerate(shards)),
        )
        manifest.write(self.folder)
        return manifest

    def _read(self, reading: Path, cap: int) -> Message:
        reader = child_process.start(
            "saebench.stores.reader_process", "the reader of texts", READER_ENVIRONMENT, self.inbox
        )
        data = self.data.model_copy(update={"num_examples": cap})
        reader.send({"data": data.model_dump(mode="json"), "folder": str(reading)})
        started = time.monotonic()
        self.report(Progress("texts", 0, cap, 0.0))
        try:
            while True:
                child, message = self.inbox.get()
                if child is not reader:
                    self._handle(child, message)
                elif message["type"] == "done":
                    return message
                elif message["type"] == "progress":
                    rate = message["kept"] / (time.monotonic() - started)
                    of = f"{message['kept']:,} of {cap:,} texts"
                    read = f"reading: {of} ({message['read']:,} rows read)"
                    self.report(Progress("texts", message["kept"], cap, rate, read))
                else:
                    raise _failure(child, message)
        finally:
            reader.close()

    def _with_rows(self, shard: Shard, old: Shard | None) -> Shard:
        """Return the new shard with the old rows if they were encoded from the same texts."""
        if old is None or old.rows is None or not has_content(self.folder, old.rows):
            return shard
        if digest_of(read_hashes(self.folder, [shard])[: old.encoded]) != old.encoded_digest:
            self._warn(f"the dataset has changed: {old.encoded:,} texts are encoded again")
            return shard
        kept = ("rows", "encoded", "encoded_digest", "truncated")
        return shard.model_copy(update={name: getattr(old, name) for name in kept})

    # --- encoding ----------------------------------------------------------------------------------------------------

    def _encode(self, manifest: Manifest) -> None:
        limit = min(manifest.count, self.data.num_examples)
        numbered = list(enumerate(manifest.shards))[: -(-limit // ROWS_PER_SHARD)]
        jobs = [job for number, shard in numbered for job in cut(self.folder, number, shard, limit)]
        if not jobs:
            return
        work = Work(jobs, self._find_part)
        if work.rows:
            if hint := bfloat16_hint(self.data, self.devices, work.rows):
                self.report(Progress("loading", 0, None, 0.0, hint))
            self.encoders.start()
            manifest = self._await_encoder(manifest)
            check_disk(self.folder, self.data, manifest.d_in or 0, work.rows)
        started, rows = time.monotonic(), 0
        for child in self.encoders.ready:
            work.hand_out(child)
        manifest = self._merge(manifest, work)
        while work.unfinished:
            child, message = self.inbox.get()
            if message["type"] == "progress":
                rows += message["rows"]
                rate = rows / (time.monotonic() - started)
                self.report(Progress("encoding", limit - work.rows + rows, limit, rate))
                self.encoders.help(child, message["seconds"], work.rows - rows)
                continue
            if message["type"] == "done":
                work.mark_done(child, message["job"], message["name"])
                manifest = self._merge(manifest, work)
            else:
                self._handle(child, message, work)
                check_model(self.folder, self.data, manifest, self.encoders)
            for encoder in self.encoders.ready:
                work.hand_out(encoder)

    def _await_encoder(self, manifest: Manifest) -> Manifest:
        """Wait for the first encoder to report the width of its rows; return the manifest with it."""
        self.report(Progress("loading", 0, None, 0.0))
        while not self.encoders.ready:
            self._handle(*self.inbox.get())
        if manifest.d_in is None or not self._has_rows(manifest):
            said = {"d_in": self.encoders.d_in, "encoder": self.encoders.info, "fingerprint": self.encoders.fingerprint}
            manifest = manifest.model_copy(update=said)
            manifest.write(self.folder)
        check_identity(self.folder, self.data, self.identity)
        check_model(self.folder, self.data, manifest, self.encoders)
        return manifest

    def _has_rows(self, manifest: Manifest | None) -> bool:
        """Return whether anything is encoded, even if only in pieces."""
        in_shards = manifest is not None and any(shard.encoded for shard in manifest.shards)
        return in_shards or any(self.parts.glob("*.npy"))

    def _handle(self, child: Child, message: Message, work: Work | None = None) -> None:
        """Handle an encoder that is ready, has failed or has died; the others take over the pieces of a dead one.
        Raises DataError if none is left."""
        if child not in self.encoders:
            return
        if message["type"] == "ready":
            self.encoders.mark_ready(child, message)
        elif message["type"] in ("error", "gone") and self.encoders.is_optional(child):
            self.encoders.remove(child)
        elif message["type"] == "error":
            raise _failure(child, message)
        elif message["type"] == "gone":
            self.encoders.remove(child)
            if not self.encoders.ready and not self.encoders.loading:
                raise _failure(child, message)
            self._warn(f"{child.name} {message['why']}; the other encoders continue")
            if work is not None:
                work.requeue(child)

    def _find_part(self, job: Job) -> str | None:
        """Return the file of a piece that an earlier build left, if its content has the checksum in its name."""
        for path in sorted(self.parts.glob(f"{part_name(job, '*')}-*.npy")):
            if is_sound(path):
                return path.name
            self._warn(f"{path.name} is damaged: {job['stop'] - job['start']:,} texts are encoded again")
            path.unlink()
        return None

    def _merge(self, manifest: Manifest, work: Work) -> Manifest:
        """Join the pieces of every shard that has all of them."""
        for number in work.complete_shards():
            shard, pieces = manifest.shards[number], [self.parts / name for name in work.take(number)]
            damaged = [path for path in pieces if not is_sound(path)]
            if damaged:
                raise DataError(
                    f"cache {damaged[0]}: was changed while the entry was built; run the same command again"
                )
            before = [self.folder / shard.rows.name] if shard.rows else []
            rows, file = join([*before, *pieces], self.folder, f"{number:05d}-rows")
            new = shard.model_copy(
                update={
                    "rows": file,
                    "encoded": rows,
                    "encoded_digest": digest_of(read_hashes(self.folder, [shard])[:rows]),
                    "truncated": shard.truncated + sum(truncated_in(path.name) for path in pieces),
                }
            )
            shards = (*manifest.shards[:number], new, *manifest.shards[number + 1 :])
            manifest = manifest.model_copy(update={"shards": shards})
            manifest.write(self.folder)
            for path in pieces:
                path.unlink()
        return manifest

    # --- tidiness ----------------------------------------------------------------------------------------------------

    def _remove_if_empty(self) -> None:
        """Remove an entry in which nothing is encoded."""
        if not self._has_rows(Manifest.read(self.folder)):
            with contextlib.suppress(OSError):  # the earlier error is the one to report
                (self.folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(self.folder, ignore_errors=True)

    def _remove_leftovers(self, before: set[str]) -> None:
        """Remove files that the finished entry does not need. If a process has the entry open, it may still read files
        of an earlier state, so nothing is removed; `cache gc` does it later."""
        manifest = Manifest.read(self.folder)
        assert manifest is not None
        with nobody_holds(beside(self.folder, ".used")) as free:
            keep = manifest.names() | before
            for path in self.folder.iterdir() if free else ():
                if path.name not in keep:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def _failure(child: Child, message: Message) -> DataError:
    return DataError(message["message"] if message["type"] == "error" else f"{child.name} {message['why']}")
