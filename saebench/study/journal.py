"""Optuna's storage: one file that only the scheduler writes, and the two places where Optuna has to be gone around."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial


class _Records(BaseJournalBackend):
    """The lines of a file that nobody else writes.

    Optuna's own backend takes a lock, waits for the disk and reads the file again at every record, and a trial is about
    eight of them. Here those that belong together are one write and one wait, and what was written is known already.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.touch()
        self._unread = deque(path.read_bytes().splitlines(keepends=True))
        self._read = 0
        self._unwritten: list[bytes] = []
        self._together = 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Every record once, to the one storage that has this backend."""
        assert log_number_from == self._read
        while self._unread:
            self._read += 1
            yield json.loads(self._unread.popleft())

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [json.dumps(log, separators=(",", ":")).encode() + b"\n" for log in logs]
        self._unwritten += lines
        self._unread.extend(lines)
        if not self._together:
            self._flush(durable=True)

    @contextmanager
    def together(self, *, durable: bool) -> Iterator[None]:
        self._together += 1
        try:
            yield
        finally:  # what Optuna has in memory belongs into the file, come what may
            self._together -= 1
            if not self._together and self._unwritten:
                self._flush(durable=durable)

    def _flush(self, *, durable: bool) -> None:
        data = b"".join(self._unwritten)
        with self._path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(data) != len(data):
                    raise OSError(f"{self._path}: not written as a whole; is the disk full?")
            except OSError:
                file.truncate(end)  # half a record would make the rest unreadable
                raise
            self._unwritten.clear()
            if durable:
                os.fsync(file.fileno())


class Journal(JournalStorage):
    """Optuna's storage in one file, written by this process alone."""

    def __init__(self, path: Path) -> None:
        self._records = _Records(path)
        super().__init__(self._records)

    @contextmanager
    def together(self, *, durable: bool = True) -> Iterator[None]:
        """The records made inside are written at the end, in order and at once, and are on the disk when this is left.
        Without `durable` a killed process loses none of them either; a power cut may, until the next durable ones."""
        with self._records.together(durable=durable):
            yield


def open_journal(path: Path) -> Journal:
    """The storage in `path`, put in order after a crash.

    A broken line followed by any append would make the journal unreadable for good, so it is cut off first. Only
    whoever holds the sweep's own lock calls this: there is no living writer, and there will be none but the caller.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    repair_journal(path)
    return Journal(path)


def repair_journal(path: Path) -> None:
    """Cut off what a crash left behind the last record before which all are whole: half a line, or blocks that never
    reached the disk, whatever follows them."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_record(line):
                break
            end += len(line)
        if end != file.seek(0, os.SEEK_END):
            file.truncate(end)


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def attach(study: optuna.Study, trial_id: int) -> optuna.trial.Trial:
    """A trial that an earlier process asked for, to go on with: to suggest what it still lacks, to report, to judge.

    Optuna has no public call for this and calls the constructor "not recommended"; it is the only place that uses it,
    and a test of its own says what is relied on.
    """
    return optuna.trial.Trial(study, trial_id)


def frozen(trial: optuna.trial.Trial) -> FrozenTrial:
    """What the storage holds of a trial; not to be changed. (`study.trials` would copy all of them.)"""
    return trial.study._storage.get_trial(trial._trial_id)
