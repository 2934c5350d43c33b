"""The embedding cache: every corpus is encoded once. No torch in the process that calls this.

`find` answers in milliseconds and checks that every file is there with its size. `build` returns a complete entry: it
finds it, waits for whoever is building it, or has it encoded by processes it starts, one per device. Checksums are
read by `build` (once per entry and start of the machine, so at the first sweep that uses it), by `verify`, and for
every piece when it is put into its shard; a file that fails is made again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.paths import write_json
from saebench.stores import keys
from saebench.stores.build import Build
from saebench.stores.entry import MANIFEST, CacheEntry, File, Manifest, has_content, has_size
from saebench.stores.hold import Hold, nobody_holds
from saebench.stores.progress import Progress, Tell
from saebench.stores.texts import one_line

__all__ = ["CacheEntry", "Listed", "Progress", "build", "entries", "find", "gc", "verify"]

log = logging.getLogger("saebench")
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def find(data: DataConfig, cache_dir: Path) -> CacheEntry | None:
    """The complete entry for `data`, or None; `gc` leaves it alone while the result lives. Raises DataError where a
    local data file is not there."""
    folder = entry_folder(data, cache_dir)
    if not os.path.exists(folder / MANIFEST):  # False, not an error, where looking is not allowed
        return None
    hold = Hold(_beside(folder, ".used"))  # before looking, so that gc cannot come between
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
    devices: Sequence[str] = ("cpu",),
    on_progress: Callable[[Progress], None] | None = None,
) -> CacheEntry:
    """The complete entry for `data`, encoded now where it is not there. Raises DataError in one line.

    `devices`: cpu | cuda:<uuid or index> | mps, one encoding process each. A build that is killed goes on where it was
    at the next call, from the last piece of 1,024 texts.
    """
    tell = on_progress or _no_one
    folder = entry_folder(data, cache_dir)
    entry = find(data, cache_dir)
    if entry is not None and _is_sound(entry, tell):
        return entry
    with _locked(folder, tell):
        entry = find(data, cache_dir)  # while we waited, somebody else may have built it
        if entry is None or not _is_sound(entry, tell):
            described = keys.describe(data, cache_dir)
            try:
                Build(data, folder, described, devices, tell).run()
            except OSError as error:
                raise DataError(f"cache {folder}: cannot be written: {one_line(error)}") from error
            entry = find(data, cache_dir)
    if entry is None:
        raise DataError(f"cache {folder}: was changed by something else while it was built")
    _remember(folder, [file for shard in entry.shards for file in shard.files()])
    return entry


def entry_folder(data: DataConfig, cache_dir: Path) -> Path:
    """Where the entry for `data` lives."""
    return cache_dir / "embeddings" / keys.digest(keys.describe(data, cache_dir))


def _no_one(progress: Progress) -> None:
    """Warnings go to the log where nobody watches the progress."""
    if progress.warning:
        log.warning(progress.message)


@contextlib.contextmanager
def _locked(folder: Path, tell: Tell) -> Iterator[None]:
    """The sole right to write the entry; waits for it, saying so."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(_beside(folder, ".lock"))
        started = time.monotonic()
        while True:
            try:
                lock.acquire(timeout=0 if not lock.is_locked and time.monotonic() - started < 0.01 else 0.5)
                break
            except Timeout:
                waited = time.monotonic() - started
                tell(
                    Progress("waiting", int(waited), None, 0.0, f"another process builds {folder.name}; waiting for it")
                )
    except OSError as error:
        raise DataError(f"cache {folder.parent}: cannot be written: {one_line(error)}") from error
    try:
        yield
    finally:
        lock.release()


# --- checksums -------------------------------------------------------------------------------------------------------


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(folder.name + suffix)


def _stamp(folder: Path, file: File) -> list[int]:
    stat = (folder / file.name).stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]


def _remembered(folder: Path) -> dict[str, list[int]]:
    """Files of the entry that were read against their checksum since the machine started."""
    try:
        found = json.loads(_beside(folder, ".verified").read_text("utf-8"))
        return dict(found["files"]) if found["boot"] == _boot() else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(folder: Path, files: Sequence[File]) -> None:
    with contextlib.suppress(OSError):
        stamps = {**_remembered(folder), **{file.name: _stamp(folder, file) for file in files}}
        write_json(_beside(folder, ".verified"), {"boot": _boot(), "files": stamps})


def _boot() -> str:
    try:
        return _BOOT.read_text().strip()
    except OSError:  # not Linux: checksums are read once a day
        return time.strftime("%Y-%m-%d")


def _is_sound(entry: CacheEntry, tell: Tell) -> bool:
    """Whether every file has its checksum; reads only files that were not read since the machine started."""
    known = _remembered(entry.directory)
    files = [file for shard in entry.shards for file in shard.files()]
    unread = [file for file in files if known.get(file.name) != _stamp(entry.directory, file)]
    for number, file in enumerate(unread):
        tell(Progress("verifying", number, len(unread), 0.0))
        if not has_content(entry.directory, file):
            return False
    if unread:
        _remember(entry.directory, unread)
    return True


# --- the cache as a whole --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listed:
    """One entry as `saebench cache ls` shows it."""

    folder: Path
    manifest: Manifest | None
    """None where it cannot be read."""
    bytes: int
    last_used: float
    """Seconds since the epoch."""
    building: bool
    """Whether a process holds its lock."""

    @property
    def complete(self) -> bool:
        return self.manifest is not None and 0 < self.manifest.count == self.manifest.encoded


def entries(cache_dir: Path) -> list[Listed]:
    """What is in the cache, most recently used first."""
    root = cache_dir / "embeddings"
    found: list[Listed] = []
    for folder in [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []:
        with contextlib.suppress(FileNotFoundError):  # removed by another process meanwhile
            found.append(_list(folder))
    return sorted(found, key=lambda listed: -listed.last_used)


def _list(folder: Path) -> Listed:
    sizes, times = [0], [folder.stat().st_mtime]
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # an entry that is being built loses files while we look
            sizes.append(path.stat().st_size if path.is_file() else 0)
    with contextlib.suppress(OSError):
        times.append(_beside(folder, ".used").stat().st_mtime)
    return Listed(folder, Manifest.read(folder), sum(sizes), max(times), _is_building(folder))


def _is_building(folder: Path) -> bool:
    path = _beside(folder, ".lock")
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # a cache that can only be read
        return False


def verify(cache_dir: Path) -> Iterator[tuple[Path, list[str]]]:
    """Each entry's folder with what is wrong in it: nothing, or a line per damaged file. Reads everything."""
    for listed in entries(cache_dir):
        manifest = listed.manifest
        while manifest is not None:
            files = [file for shard in manifest.shards for file in shard.files()]
            bad = [file for file in files if not has_content(listed.folder, file)]
            before, manifest = manifest, Manifest.read(listed.folder)
            if manifest == before:  # it did not grow, nor was it removed, while it was read
                _remember(listed.folder, [file for file in files if file not in bad])
                why = {True: "the content has another checksum", False: "missing or of another size"}
                yield listed.folder, [f"{file.name}: {why[has_size(listed.folder, file)]}" for file in bad]
                break
        if manifest is None and listed.folder.exists():
            yield listed.folder, ["no readable manifest"]


def gc(
    cache_dir: Path, keys_: Sequence[str] = (), unused_days: float | None = None, dry_run: bool = False
) -> Iterator[tuple[Path, int, str]]:
    """Remove (path, bytes, why): entries named by (the beginning of) their key, entries not used for `unused_days`,
    and always what no entry needs: unreadable entries and leftovers. Entries that a process builds or reads stay; those
    that are named are told all the same, with 0 bytes. Raises DataError where something cannot be removed."""
    for listed in entries(cache_dir):
        named = any(listed.folder.name.startswith(key) for key in keys_)
        if listed.building:
            if named:
                yield listed.folder, 0, "stays: a process builds it"
            continue
        if named:
            why = "named"
        elif unused_days is not None and time.time() - listed.last_used > unused_days * 86_400:
            why = f"not used for {(time.time() - listed.last_used) / 86_400:.0f} days"
        elif listed.manifest is None:
            why = "no readable manifest"
        else:
            with contextlib.suppress(FileNotFoundError):  # another process tidies up, too
                yield from _leftovers(listed, dry_run)
            continue
        if _remove_entry(listed.folder, dry_run):
            yield listed.folder, listed.bytes, why
        elif named:
            yield listed.folder, 0, "stays: a process uses it"
    yield from _stale_digests(cache_dir, dry_run)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether nobody builds or reads the entry; nobody begins to while this lasts. The lock file stays afterwards: who
    waits for it must not wait for a file that is not there any more."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(_beside(folder, ".lock"), timeout=0))
        except Timeout:
            yield False
            return
        yield stack.enter_context(nobody_holds(_beside(folder, ".used")))


def _remove_entry(folder: Path, dry_run: bool) -> bool:
    """Whether it was (in a dry run: would be) removed."""
    try:
        with _alone(folder) as alone:
            if alone and not dry_run:
                (folder / MANIFEST).unlink(missing_ok=True)  # first: half an entry must not look like one
                shutil.rmtree(folder)
                for suffix in (".used", ".verified"):
                    _beside(folder, suffix).unlink(missing_ok=True)
            return alone
    except OSError as error:
        raise DataError(f"cache {folder}: cannot be removed: {one_line(error)}") from error


def _leftovers(listed: Listed, dry_run: bool) -> Iterator[tuple[Path, int, str]]:
    """What an entry does not need; who opened it before it grew may still read files of then."""
    assert listed.manifest is not None
    keep = listed.manifest.names() | (set() if listed.complete else {"parts"})
    extra = [path for path in sorted(listed.folder.iterdir()) if path.name not in keep]
    if not extra:
        return
    with _alone(listed.folder) as alone:
        for path in extra if alone else []:
            size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
            if not dry_run:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            yield path, size, "left over"


def _stale_digests(cache_dir: Path, dry_run: bool) -> Iterator[tuple[Path, int, str]]:
    for path in sorted((cache_dir / "digests").glob("*.json")):
        try:
            known: dict[str, Any] = json.loads(path.read_text("utf-8"))
            stale = not os.path.exists(known["path"])
        except (OSError, ValueError, KeyError, TypeError):
            stale = True
        if stale:
            size = path.stat().st_size
            if not dry_run:
                path.unlink()
            yield path, size, "of a file that is gone"
