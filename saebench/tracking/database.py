"""A SQLite file as MLflow's database: commit without an fsync, then sync before anything relies on the commits.

MLflow commits about six times per trial, and with SQLite's rollback journal each commit waits for the disk several
times. With a write-ahead log a commit is an append. It survives a killed process, but not a power cut: the log must be
synced before `tracking.json` records what the server has, which is at most once a second.

The journal mode is stored in the file and outlives the sweep, so the sweep restores the old mode when it ends: a file
with a write-ahead log cannot be opened in a read-only folder (a colleague's, an archive, a mounted share), and a copy
of the file alone may lack what is still in the log. MLflow creates a plain file, and its owner expects one.
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
    from sqlalchemy import Connection, Engine
    from sqlalchemy.pool import ConnectionPoolEntry

_LOGGED: set[str] = set()
"""Files (real paths) whose connections do not wait for the disk at every commit."""
_ENGINES: weakref.WeakSet[Engine] = weakref.WeakSet()
"""Engines of this process that have connected to a database since the first such file."""
_LOCAL_FILE_SYSTEMS = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay", "apfs", "hfs"}
)
"""A write-ahead log has an index in memory that machines cannot share, so network file systems cannot use one."""


def use_log(uri: str) -> None:
    """Let this process's connections to the database commit into a write-ahead log without waiting for the disk.

    Call it before MLflow connects; `sync_log` syncs the log. Does nothing for a file on a network file system, or while
    another process has the file open in its old mode.
    """
    path = sqlite_file(uri)
    if path is None or str(path.resolve()) in _LOGGED or _file_system(path) not in _LOCAL_FILE_SYSTEMS:
        return
    from sqlalchemy import Engine, event

    if not event.contains(Engine, "connect", _on_connect):
        event.listen(Engine, "connect", _on_connect)
        event.listen(Engine, "engine_connect", _on_engine_connect)
    _LOGGED.add(str(path.resolve()))


def _on_engine_connect(connection: Connection) -> None:
    """SQLAlchemy's hook for each connection that is taken from a pool, to any database."""
    _ENGINES.add(connection.engine)


def _on_connect(connection: Any, _: ConnectionPoolEntry) -> None:
    """SQLAlchemy's hook for each new connection, to any database."""
    if not isinstance(connection, sqlite3.Connection):
        return
    files = {os.path.realpath(row[2]) for row in connection.execute("PRAGMA database_list") if row[2]}
    if not files & _LOGGED:
        return
    with contextlib.suppress(sqlite3.OperationalError):  # another process has it open in its old mode
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode == "wal":
            connection.execute("PRAGMA synchronous = NORMAL")


def sync_log(uri: str) -> None:
    """Sync the write-ahead log, so that every commit is on the disk. (SQLite itself syncs what it has moved from the
    log into the file.)"""
    path = sqlite_file(uri)
    if path is None or str(path.resolve()) not in _LOGGED:
        return
    # not the database file: closing a second descriptor of it would drop SQLite's POSIX locks
    with contextlib.suppress(FileNotFoundError), path.with_name(f"{path.name}-wal").open("r+b") as log:
        os.fsync(log.fileno())


def checkpoint_log(uri: str) -> None:
    """Checkpoint the log into the file, so that the file alone is the whole database. Does nothing while another
    connection reads; SQLite checkpoints again when the last connection is closed."""
    path = sqlite_file(uri)
    if path is None or not path.exists() or str(path.resolve()) not in _LOGGED:
        return
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path, timeout=1)) as own:
        own.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def restore_journal(uri: str) -> None:
    """Restore the file's old journal mode. Does nothing while another process has the file open (`mlflow ui`, or
    another sweep, which restores the mode when it ends) or another thread reads it; after a kill, the next sweep to end
    restores it."""
    path = sqlite_file(uri)
    if path is None or not path.exists() or str(path.resolve()) not in _LOGGED:
        return
    file = str(path.resolve())
    _LOGGED.discard(file)
    for engine in list(_ENGINES):
        if engine.url.database and os.path.realpath(engine.url.database) == file:
            # The mode can change only if no connection is open, and MLflow's pool never closes an idle one. The pool
            # closes it here: closing a connection directly crashes the process if a thread has just checked it out.
            engine.dispose()
    with contextlib.suppress(sqlite3.OperationalError), contextlib.closing(sqlite3.connect(path, timeout=1)) as own:
        own.execute("PRAGMA journal_mode = DELETE").fetchone()


_ARTIFACT_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps absolute paths of artifacts."""


def relocate(uri: str, before: str) -> None:
    """Rewrite the artifact paths in a database that was moved with its folder from the address `before`: MLflow keeps
    absolute paths, and would write new trials' files to the old folder. Does nothing while the old file exists."""
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
    """Return the type of the file system that `path` is or will be on; "" if unknown."""
    try:
        mounted = {part.mountpoint: part.fstype for part in psutil.disk_partitions(all=True)}
    except OSError:
        return ""
    places = [str(parent) for parent in (path.resolve(), *path.resolve().parents)]
    return next((mounted[place].lower() for place in places if place in mounted), "")
