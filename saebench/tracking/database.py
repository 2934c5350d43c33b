"""A SQLite file as MLflow's database: fewer waits for the disk, and none of them forgotten.

MLflow commits about six times per trial, and with SQLite's rollback journal each commit waits for the disk several
times. With a write-ahead log a commit is an append. It survives a killed process; for a power cut it has to be made
durable before anything relies on it, and here that is `tracking.json`, at most once a second.

The mode is written into the file and outlives the sweep, so the sweep's end puts the old one back: a file with a
write-ahead log cannot be opened where its folder cannot be written to (a colleague's, an archive, a mounted share), and
copied alone it may lack what is still in the log. MLflow makes and expects a plain file; so does its owner.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from saebench.tracking.address import sqlite_file

if TYPE_CHECKING:
    from sqlalchemy.pool import ConnectionPoolEntry

_QUICK: set[str] = set()
"""Files (real paths) whose connections do not wait for the disk at every commit."""
_POOLED: weakref.WeakKeyDictionary[ConnectionPoolEntry, set[str]] = weakref.WeakKeyDictionary()
"""Connections of this process to such files, idle or not."""
_OF_ONE_MACHINE = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs"})
"""A write-ahead log has an index in memory that machines cannot share, so that file systems of a network are out."""


def quicken(uri: str) -> None:
    """Let this process's connections to the database commit into a write-ahead log without waiting for the disk.

    To be called before MLflow connects; `settle` does the waiting. Nothing changes for a file on a disk that machines
    may share, nor where somebody holds the file in its old mode.
    """
    path = sqlite_file(uri)
    if path is None or str(path.resolve()) in _QUICK or _file_system(path) not in _OF_ONE_MACHINE:
        return
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "connect", _connected):
        event.listen(Engine, "connect", _connected)
    _QUICK.add(str(path.resolve()))


def _connected(connection: Any, entry: ConnectionPoolEntry) -> None:
    """SQLAlchemy's hook: a new connection, to whatever database."""
    if not isinstance(connection, sqlite3.Connection):
        return
    files = {os.path.realpath(row[2]) for row in connection.execute("PRAGMA database_list") if row[2]}
    if not files & _QUICK:
        return
    with contextlib.suppress(sqlite3.OperationalError):  # held by somebody in its old mode: it stays there
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")
            _POOLED[entry] = files


def settle(uri: str) -> None:
    """Wait until all that was committed is on the disk. (What SQLite has moved from the log into the file already is
    there: it waits for that itself.)"""
    path = sqlite_file(uri)
    if path is None or str(path.resolve()) not in _QUICK:
        return
    # not the file itself: to open and close that would drop the locks that SQLite holds on it
    with contextlib.suppress(FileNotFoundError), path.with_name(f"{path.name}-wal").open("r+b") as log:
        os.fsync(log.fileno())


def gather(uri: str) -> None:
    """Move what is in the log into the file, so that the file alone is the whole database. Left undone while somebody
    reads; SQLite does it again when the last connection is closed."""
    path = sqlite_file(uri)
    if path is None or not path.exists() or str(path.resolve()) not in _QUICK:
        return
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path, timeout=1)) as own:
        own.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def restore(uri: str) -> None:
    """Give the file its old mode back. Left undone while another process has it open (`mlflow ui`, another sweep, whose
    own end will do it), and after a kill until the next end of a sweep."""
    path = sqlite_file(uri)
    if path is None or not path.exists() or str(path.resolve()) not in _QUICK:
        return
    _QUICK.discard(str(path.resolve()))
    for entry in [entry for entry, files in _POOLED.items() if str(path.resolve()) in files and not entry.in_use]:
        entry.invalidate()  # MLflow's pool keeps them for good, and the mode changes for the last connection only
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path, timeout=1)) as own:
        own.execute("PRAGMA journal_mode = DELETE").fetchone()


_ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow keeps absolute paths of artifacts."""


def relocate(uri: str, before: str) -> None:
    """Let artifacts follow a database that was moved with its folder from the address `before`: MLflow keeps absolute
    paths, and would write the files of new trials to the old place. Nothing is changed while the old file exists."""
    new, old = sqlite_file(uri), sqlite_file(before)
    if new is None or old is None or new == old or old.exists() or not new.is_file():
        return
    folders = [(old.parent.as_uri(), new.parent.as_uri()), (str(old.parent), str(new.parent))]
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(new, timeout=5)) as own, own:
        for table, column in _ARTIFACT_COLUMNS:
            with contextlib.suppress(sqlite3.OperationalError):  # an older schema lacks the table
                for was, now in folders:
                    own.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                        (f"{now}/", len(was) + 2, len(was) + 1, f"{was}/"),
                    )


def _file_system(path: Path) -> str:
    """Type of the file system that `path` is or will be on; empty where nobody says."""
    try:
        mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    except OSError:
        return ""
    places = [str(parent) for parent in (path.resolve(), *path.resolve().parents)]
    return next((mounted[place].lower() for place in places if place in mounted), "")
