"""The embedding cache: every corpus is encoded once. No torch in the process that calls this.

`find` takes milliseconds and checks that every file exists with its size. `build` returns a complete entry: it finds
it, waits for another process that is building it, or starts processes that encode it, one per device. Checksums are
compared by `build` (once per entry and start of the machine, so at the first sweep that uses it), by `verify`, and for
every piece when it is joined to its shard; a damaged file is built again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from filelock import FileLock, Timeout

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.runs.durable import replacing, write_json
from saebench.runs.paths import embeddings_dir
from saebench.stores import keys, neighbours, own
from saebench.stores.beside import beside, keep_file, name_of, read_keep, read_twins
from saebench.stores.build import Build
from saebench.stores.child_process import Launch
from saebench.stores.entry import CacheEntry
from saebench.stores.in_use import Hold
from saebench.stores.manifest import MANIFEST, File, Manifest, has_content
from saebench.stores.messages import one_line
from saebench.stores.progress import OnProgress, Progress
from saebench.stores.sources import problem_of
from saebench.stores.texts import EVALUATED

__all__ = ["CacheEntry", "Progress", "build", "find"]

log = logging.getLogger("saebench")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def find(data: DataConfig, cache_dir: Path, cache_key: str | None = None) -> CacheEntry | None:
    """Return the complete entry for `data`, or None; `gc` does not remove it while the result lives. With `cache_key`
    the data files are not read, so they may have changed since. Raises DataError if a local data file is missing."""
    folder = entry_folder(data, cache_dir) if cache_key is None else embeddings_dir(cache_dir) / cache_key
    if not os.path.exists(folder / MANIFEST):  # False, not an error, where looking is not allowed
        return None
    hold = Hold(beside(folder, ".used"))  # before looking, so that gc cannot come between
    for _ in range(3):  # an entry that grows replaces files between our reading of the manifest and of them
        manifest = Manifest.read(folder)
        if manifest is None:
            return None
        try:
            entry = CacheEntry.of(folder, manifest, data, hold)
        except OSError:
            continue
        if entry is not None:
            return entry
    return None


def build(
    data: DataConfig,
    cache_dir: Path,
    devices: Sequence[str | Launch] = ("cpu",),
    on_progress: Callable[[Progress], None] | None = None,
    copy: bool = False,
) -> CacheEntry:
    """Return the complete entry for `data`; encode what is missing. Raises DataError in one line. With `copy`, the
    entry holds all rows: those of `data.embeddings` are not mapped from the user's files.

    `devices`: cpu | cuda:<uuid or index> | mps, one encoding process each, or places on other machines. The next call
    resumes a build that was killed, from the last piece of 1,024 texts.
    """
    report = on_progress or _ignore_progress
    with contextlib.suppress(OSError):  # digests of data files are kept there, and needed again below
        cache_dir.mkdir(parents=True, exist_ok=True)
    entry = _encoded(data.model_copy(update={"deduplicate": None}), cache_dir, devices, report, copy)
    if data.deduplicate is not None:
        _find_near_duplicates(entry, data.deduplicate, report)
        entry = find(data, cache_dir, entry.cache_key) or _changed(entry.directory)
    return _with_twins(entry, report)


def _encoded(
    data: DataConfig, cache_dir: Path, devices: Sequence[str | Launch], report: OnProgress, copy: bool
) -> CacheEntry:
    """Return the complete entry, all files of which were compared with their checksums since the machine started."""
    folder = entry_folder(data, cache_dir)
    entry = find(data, cache_dir)
    if entry is not None and _is_tidy(folder) and _is_sound(entry, report) and _is_in_place(entry, copy):
        return entry
    with _locked(folder, report):
        entry = find(data, cache_dir)  # another process may have built it meanwhile
        sound = entry is not None and _is_tidy(folder) and _is_sound(entry, report) and _is_in_place(entry, copy)
        if entry is None or not sound:
            entry = None  # release it, so that its old files can be removed
            identity = keys.identity_of(data, cache_dir)
            try:
                if data.embeddings is not None:
                    own.build(data, folder, identity, report, copy)
                else:
                    Build(data, folder, identity, devices, report).run()
            except OSError as error:
                raise DataError(f"cache {folder}: cannot be written: {one_line(error)}") from error
            entry = find(data, cache_dir)
    if entry is None:
        _changed(folder)
    remember(folder, [file for shard in entry.shards for file in shard.files()])
    return entry


def entry_folder(data: DataConfig, cache_dir: Path) -> Path:
    """Return the folder of the entry for `data`."""
    return embeddings_dir(cache_dir) / keys.cache_key(keys.identity_of(data, cache_dir))


def _changed(folder: Path) -> NoReturn:
    raise DataError(f"cache {folder}: was changed by something else while it was built; run the same command again")


def _find_near_duplicates(entry: CacheEntry, above: float, report: OnProgress) -> None:
    path = keep_file(entry.directory, entry.hashes, above)
    if read_keep(path, entry.count) is not None:
        return
    keep = neighbours.without_near_duplicates(entry.read, entry.count, above, _comparing(report))
    try:
        with replacing(path) as new:
            np.save(new.file, keep)
    except OSError as error:
        raise DataError(f"cache {path}: cannot be written: {one_line(error)}") from error


def _with_twins(entry: CacheEntry, report: OnProgress) -> CacheEntry:
    """Return the entry with the counts of texts that have a (near-)duplicate among the training texts, computed if
    unknown."""
    if "near_test" in entry.info:
        return entry
    looked_at = neighbours.rows_looked_at(entry.num_test, entry.num_train, entry.d_in)
    test = entry.test_index
    lowest = np.sort(test[np.argsort(entry.hashes[test], kind="stable")[:looked_at]])
    near = neighbours.count_near(entry.read, lowest, entry.train_index, neighbours.NEAR, _comparing(report))
    equal = neighbours.count_equal(entry.read, [entry.index_of(part) for part in EVALUATED], entry.train_index)
    counts: dict[str, Any] = {f"equal_{part}": count for part, count in zip(EVALUATED, equal, strict=True)}
    counts |= {"near_test": near, "near_test_of": len(lowest), "near_above": neighbours.NEAR}
    used = entry.hashes if entry.keep is None else entry.hashes[entry.keep]
    with contextlib.suppress(OSError):  # a cache that can only be read: counted again next time
        known = read_twins(entry.directory) | {name_of(used, entry.division): counts}
        write_json(beside(entry.directory, ".twins"), known)
    return replace(entry, info=entry.info | counts)


def _comparing(report: OnProgress) -> Callable[[int, int], None]:
    started = time.monotonic()

    def compared(done: int, total: int) -> None:
        rate = done / max(1e-9, time.monotonic() - started)
        report(Progress("comparing", done, total, rate, f"comparing embeddings: {done:,} of {total:,} texts"))

    return compared


def _is_tidy(folder: Path) -> bool:
    """Return whether the last build of the entry removed its pieces; one that was killed at its very end did not."""
    return not (folder / "parts").exists()


def _is_in_place(entry: CacheEntry, copy: bool) -> bool:
    """Return whether the rows are where they should be: in the entry, or in files of the user that have not changed."""
    in_entry = not entry.manifest.sources
    return in_entry or not (
        copy or any(problem_of(source, entry.directory.parents[1]) for source in entry.manifest.sources)
    )


def _ignore_progress(progress: Progress) -> None:
    """Log warnings if the caller does not listen to the progress."""
    if progress.warning:
        log.warning(progress.message)


@contextlib.contextmanager
def _locked(folder: Path, report: OnProgress) -> Iterator[None]:
    """Hold the entry's lock; report while waiting for it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(beside(folder, ".lock"))
        started = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=0 if not lock.is_locked and time.monotonic() - started < 0.01 else 0.5)
                break
            except Timeout:
                waited = time.monotonic() - started
                report(
                    Progress("waiting", int(waited), None, 0.0, f"another process builds {folder.name}; waiting for it")
                )
    except OSError as error:
        raise DataError(f"cache {folder.parent}: cannot be written: {one_line(error)}") from error
    try:
        yield
    finally:
        lock.release()


# --- checksums -------------------------------------------------------------------------------------------------------


def _stamp(folder: Path, file: File) -> list[int]:
    stat = (folder / file.name).stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _remembered(folder: Path) -> dict[str, list[int]]:
    """Return the files of the entry that were compared with their checksum since the machine started."""
    try:
        found = json.loads(beside(folder, ".verified").read_text("utf-8"))
        return dict(found["files"]) if found["boot"] == _boot() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def remember(folder: Path, files: Sequence[File]) -> None:
    """Record that these files of the entry have just been compared with their checksum."""
    with contextlib.suppress(OSError):
        stamps = {**_remembered(folder), **{file.name: _stamp(folder, file) for file in files}}
        write_json(beside(folder, ".verified"), {"boot": _boot(), "files": stamps})


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # not Linux: checksums are read once a day
        return time.strftime("%Y-%m-%d")


def _is_sound(entry: CacheEntry, report: OnProgress) -> bool:
    """Return whether every file has its checksum; reads only files that were not read since the machine started."""
    known = _remembered(entry.directory)
    files = [file for shard in entry.shards for file in shard.files()]
    unread = [file for file in files if known.get(file.name) != _stamp(entry.directory, file)]
    for number, file in enumerate(unread):
        report(Progress("verifying", number, len(unread), 0.0))
        if not has_content(entry.directory, file):
            return False
    if unread:
        remember(entry.directory, unread)
    return True
