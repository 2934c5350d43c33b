"""The records of Optuna's journal: written by one scheduler, in groups, and durable once `commit` returns.

Optuna's own backends take a lock, wait for the disk and read everything again at every record, and a trial is about
eight of them. Here there is no other writer, so a group of records is one write, and nothing has to be read again.
"""

from __future__ import annotations

import json
import os
import shutil
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import BaseJournalBackend
from pydantic_core import from_json

from saebench.runs.files import is_intact, seal_line


class Records(BaseJournalBackend):
    """Records in memory, until a group of them is stored."""

    def __init__(self, kept: Iterable[bytes]) -> None:
        """`kept`: the stored records, in order."""
        self._unread = deque(kept)
        self._read = 0
        self._unwritten: list[bytes] = []
        self._groups = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Return every record once, to the one storage that has this backend."""
        assert log_number_from == self._read
        while self._unread:
            self._read += 1
            record = json.loads(self._unread.popleft())
            record.pop("crc32", None)
            yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records, to the current group if there is one; otherwise they are durable when this returns."""
        lines = [seal_line(json.dumps(log, separators=(",", ":"))).encode() for log in logs]
        self._unwritten += lines
        self._unread.extend(lines)
        if not self._groups:
            self.commit()

    @contextmanager
    def group(self) -> Iterator[None]:
        """Store the records made inside together: later all of them are found, or none. They are durable after the next
        `commit`."""
        self._groups += 1
        try:
            yield
        finally:  # Optuna has in memory what was recorded so far, whatever was raised
            self._groups -= 1
            if not self._groups and self._unwritten:
                self._hand_over()

    @abstractmethod
    def _hand_over(self) -> None:
        """Pass on the records that are not written yet, as far as possible without waiting."""

    @abstractmethod
    def commit(self) -> None:
        """Make every record so far durable."""

    def close(self) -> None:
        """Close the file or connection."""


class FileRecords(Records):
    """Records as lines of a file. A killed process loses none that were passed on; a power cut may lose those before
    `commit`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._unsynced = False
        super().__init__(path.read_bytes().splitlines(keepends=True))

    def _hand_over(self) -> None:
        data = b"".join(self._unwritten)
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(f"{self._path}: not written completely; is the disk full?")
            except OSError:
                file.truncate(end)  # half a record would make the rest unreadable
                raise
        self._unwritten.clear()
        self._unsynced = True

    def commit(self) -> None:
        if self._unwritten:
            self._hand_over()
        if self._unsynced:
            with self._path.open("rb") as file:
                os.fsync(file.fileno())
            self._unsynced = False


def set_aside(path: Path) -> None:
    """Rename a journal that cannot be used; the trials are read from their directories again."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.damaged"))


def repair_journal(path: Path) -> None:
    """Cut off everything after the first incomplete record: half a line, or blocks that never reached the disk, and all
    that follows them. If more than the end of the file is broken, keep a copy as `.damaged`."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not is_record(line):
                break
            end += len(line)
        if end == file.seek(0, os.SEEK_END):
            return
        file.seek(end)
        if any(is_record(line) for line in file):
            shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        file.truncate(end)


def is_record(line: bytes) -> bool:
    """Return whether this line is a complete record of Optuna's with the right checksum."""
    try:
        record = from_json(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("op_code"), int) and is_intact(line)
