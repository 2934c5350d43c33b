"""The cache as a whole: list its entries, verify them, remove unneeded files."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from saebench.errors import DataError
from saebench.runs.paths import embeddings_dir
from saebench.stores.beside import beside
from saebench.stores.cache import remember
from saebench.stores.in_use import nobody_holds
from saebench.stores.manifest import MANIFEST, File, Manifest, has_content, has_size
from saebench.stores.messages import one_line

CUT_OFF_SECONDS = 3600
"""Age in seconds of a small file that is certainly not being written."""


@dataclass(frozen=True)
class Listed:
    """One entry as `saebench cache ls` shows it."""

    folder: Path
    manifest: Manifest | None
    """None if it cannot be read."""
    bytes: int
    last_used: float
    """Seconds since the epoch."""
    building: bool
    """Whether a process holds its lock."""

    @property
    def complete(self) -> bool:
        return self.manifest is not None and 0 < self.manifest.count == self.manifest.encoded


def entries(cache_dir: Path) -> list[Listed]:
    """Return the entries of the cache, most recently used first."""
    root = embeddings_dir(cache_dir)
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
        times.append(beside(folder, ".used").stat().st_mtime)
    return Listed(folder, Manifest.read(folder), sum(sizes), max(times), _is_building(folder))


def _is_building(folder: Path) -> bool:
    path = beside(folder, ".lock")
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
    """Yield each entry's folder with a line per damaged file. Reads everything."""
    for listed in entries(cache_dir):
        manifest = listed.manifest
        while manifest is not None:
            files = [file for shard in manifest.shards for file in shard.files()]
            bad = [file for file in files if not has_content(listed.folder, file)]
            before, manifest = manifest, Manifest.read(listed.folder)
            if manifest == before:  # it did not grow, nor was it removed, while it was read
                remember(listed.folder, [file for file in files if file not in bad])
                why = {True: "the content has another checksum", False: "missing or of another size"}
                problems = [f"{file.name}: {why[has_size(listed.folder, file)]}" for file in bad]
                yield listed.folder, problems + list(_changed_sources(manifest))
                break
        if manifest is None and listed.folder.exists():
            yield listed.folder, ["no readable manifest"]


def _changed_sources(manifest: Manifest) -> Iterator[str]:
    """Yield a line per file of the user that no longer has the content with which the entry was built."""
    for source in manifest.sources:
        path = Path(source.path)
        if not has_content(path.parent, File(name=path.name, bytes=source.bytes, sha256=source.sha256)):
            why = "has changed since the entry was built" if path.exists() else "no such file"
            yield f"{path}: {why}; put it back as it was: the entry has no copy of its rows"


def gc(
    cache_dir: Path, keys_: Sequence[str] = (), unused_days: float | None = None, dry_run: bool = False
) -> Iterator[tuple[Path, int, str]]:
    """Remove (path, bytes, why): entries named by (the beginning of) their key, entries not used for `unused_days`, and
    always unreadable entries and leftovers. Entries that a process builds or reads are kept; named ones among them are
    yielded with 0 bytes. Raises DataError if something cannot be removed."""
    for listed in entries(cache_dir):
        named = any(listed.folder.name.startswith(key) for key in keys_)
        if listed.building:
            if named:
                yield listed.folder, 0, "kept: a process is building it"
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
            yield listed.folder, 0, "kept: a process is using it"
    yield from _stale_digests(cache_dir, dry_run)
    yield from _stale_floors(cache_dir, dry_run)
    yield from _cut_off(cache_dir, dry_run)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Yield whether no process builds or reads the entry; no process can start to do so until the block ends. The lock
    file stays: a process that waits for it must not wait for a deleted file."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(beside(folder, ".lock"), timeout=0))
        except Timeout:
            yield False
            return
        yield stack.enter_context(nobody_holds(beside(folder, ".used")))


def _remove_entry(folder: Path, dry_run: bool) -> bool:
    """Remove an entry; return whether it was (in a dry run: would be) removed."""
    try:
        with _locked(folder) as alone:
            if alone and not dry_run:
                (folder / MANIFEST).unlink(missing_ok=True)  # first, so that half an entry is not taken for one
                shutil.rmtree(folder)
                for suffix in (".used", ".verified", ".twins"):
                    beside(folder, suffix).unlink(missing_ok=True)
                for path in folder.parent.glob(f"{folder.name}.keep-*.npy"):
                    path.unlink(missing_ok=True)
            return alone
    except OSError as error:
        raise DataError(f"cache {folder}: cannot be removed: {one_line(error)}") from error


def _leftovers(listed: Listed, dry_run: bool) -> Iterator[tuple[Path, int, str]]:
    """Remove files that an entry does not need, unless a process has it open and may still read them."""
    assert listed.manifest is not None
    keep = listed.manifest.names() | (set() if listed.complete else {"parts"})
    extra = [path for path in sorted(listed.folder.iterdir()) if path.name not in keep]
    if not extra:
        return
    with _locked(listed.folder) as alone:
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
            with contextlib.suppress(FileNotFoundError):  # another process tidies up, too
                size = path.stat().st_size
                if not dry_run:
                    path.unlink()
                yield path, size, "of a deleted file"


def _stale_floors(cache_dir: Path, dry_run: bool) -> Iterator[tuple[Path, int, str]]:
    """Remove floors (CACHE/floors/KEY-DIGEST.json) of embeddings that are no longer in the cache."""
    root = embeddings_dir(cache_dir)
    for path in sorted((cache_dir / "floors").glob("*.json")):
        key, _, digest = path.stem.rpartition("-")
        if not key or not digest or not (root / key).is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process tidies up, too
                size = path.stat().st_size
                if not dry_run:
                    path.unlink()
                yield path, size, "floors of deleted embeddings"


def _cut_off(cache_dir: Path, dry_run: bool) -> Iterator[tuple[Path, int, str]]:
    """Remove temporary files beside the entries, left by writers that were killed."""
    for path in sorted(cache_dir.glob("*/.*.tmp")):
        with contextlib.suppress(FileNotFoundError):
            found = path.stat()
            if time.time() - found.st_mtime > CUT_OFF_SECONDS:
                if not dry_run:
                    path.unlink()
                yield path, found.st_size, "left over"
