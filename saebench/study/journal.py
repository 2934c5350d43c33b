"""Optuna's storage: one file that only the scheduler writes, and two places where Optuna has to be worked around."""

from __future__ import annotations

import copy
import json
import os
import shutil
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial, TrialState
from pydantic_core import from_json

from saebench.runs.files import is_intact, seal_line


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
            record = json.loads(self._unread.popleft())
            record.pop("crc32", None)
            yield record

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = [seal_line(json.dumps(log, separators=(",", ":"))).encode() for log in logs]
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
        self._study: dict[int, int] = {}
        """Trial's id -> its study's."""
        self._superseded: set[int] = set()
        """Ids of trials that ended as failed and were begun again."""
        self._first: dict[int, int] = {}
        """Id of a trial begun again -> the number, within the study, that the first of its kind was given."""
        self._again: dict[int, list[int]] = {}
        """Study's id -> the numbers that trials begun again were given, in order."""
        super().__init__(self._records)
        for study in self.get_all_studies():
            trials = super().get_all_trials(study._study_id, deepcopy=False)
            self._study |= {trial._trial_id: study._study_id for trial in trials}

    def supersede(self, old: int, new: int) -> None:
        """The trial `new` goes on where `old` failed. From now on Optuna sees the new one in place of the old one, and
        all of the study under the numbers that they would have had without the failure: nothing counts twice, and
        what depends on numbers (the bracket of hyperband) is the same."""
        self._first[new] = self._first.get(old, super().get_trial(old).number)
        insort(self._again.setdefault(self._study[new], []), super().get_trial(new).number)
        self._superseded.add(old)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, template_trial)
        self._study[trial_id] = study_id
        return trial_id

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self._renumbered(super().get_trial(trial_id))

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy, states)
        if study_id not in self._again:
            return trials
        current = (self._renumbered(trial) for trial in trials if trial._trial_id not in self._superseded)
        return sorted(current, key=lambda trial: trial.number)

    def _renumbered(self, trial: FrozenTrial) -> FrozenTrial:
        again = self._again.get(self._study[trial._trial_id])
        if again:
            first, trial = self._first.get(trial._trial_id, trial.number), copy.copy(trial)
            trial.number = first - bisect_left(again, first)
        return trial

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
    try:
        return Journal(path)
    except UNREADABLE:
        set_aside(path)
        return Journal(path)


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError)
"""What Optuna raises for records that are whole but are not its own."""


def set_aside(path: Path) -> None:
    """Rename a journal that cannot be used; the trials are read from their directories again."""
    if path.exists():
        path.replace(path.with_name(f"{path.name}.damaged"))


def repair_journal(path: Path) -> None:
    """Cut off what follows the last record before which all are whole: half a line, or blocks that never reached the
    disk, whatever follows them. A file in which more than its end is broken is kept beside as `.damaged`."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = 0
        for line in file:
            if not line.endswith(b"\n") or not _is_record(line):
                break
            end += len(line)
        if end == file.seek(0, os.SEEK_END):
            return
        file.seek(end)
        if any(_is_record(line) for line in file):
            shutil.copyfile(path, path.with_name(f"{path.name}.damaged"))
        file.truncate(end)


def _is_record(line: bytes) -> bool:
    try:
        record = from_json(line)
    except ValueError:
        return False
    return isinstance(record, dict) and isinstance(record.get("op_code"), int) and is_intact(line)


def attach(study: optuna.Study, trial_id: int) -> optuna.trial.Trial:
    """A trial that an earlier process asked for, to go on with: to suggest what it still lacks, to report, to judge.

    Optuna has no public call for this and calls the constructor "not recommended"; it is the only place that uses it,
    and a test of its own says what is relied on.
    """
    return optuna.trial.Trial(study, trial_id)


def frozen(trial: optuna.trial.Trial) -> FrozenTrial:
    """What the storage holds of a trial; not to be changed. (`study.trials` would copy all of them.)"""
    return trial.study._storage.get_trial(trial._trial_id)
