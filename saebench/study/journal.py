"""Optuna's storage: a journal that only the scheduler writes, with two workarounds for Optuna."""

from __future__ import annotations

import copy
from bisect import bisect_left, insort
from collections.abc import Container
from contextlib import AbstractContextManager
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from saebench.study.database import Database
from saebench.study.records import FileRecords, Records, repair_journal, set_aside
from saebench.study.table import TableRecords, set_rows_aside


class Journal(JournalStorage):
    """Optuna's storage in records that only this process writes."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self._study: dict[int, int] = {}
        """Trial's id -> its study's."""
        self._superseded: set[int] = set()
        """Ids of failed trials that were started again."""
        self._first: dict[int, int] = {}
        """Id of a trial started again -> number, within the study, of the first trial that it replaces."""
        self._again: dict[int, list[int]] = {}
        """Study's id -> numbers of trials started again, in order."""
        super().__init__(self._records)
        for study in self.get_all_studies():
            trials = super().get_all_trials(study._study_id, deepcopy=False)
            self._study |= {trial._trial_id: study._study_id for trial in trials}

    def supersede(self, old: int, new: int) -> None:
        """Replace the failed trial `old` by `new`. From now on Optuna sees only the new one, and all trials of the
        study under the numbers that they would have without the failure: nothing counts twice, and results that depend
        on numbers (the bracket of hyperband) are the same."""
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

    def group(self) -> AbstractContextManager[None]:
        """Store the records made inside together: later all of them are found, or none. They are durable after the next
        `commit`."""
        return self._records.group()

    def commit(self) -> None:
        """Make every record so far durable."""
        self._records.commit()

    def close(self) -> None:
        """Close the journal; the storage cannot be used afterwards."""
        self._records.close()


def open_journal(storage: Path | Database) -> Journal:
    """Return the storage in a file or a database, repaired after a crash. Complete records that are not Optuna's are
    set aside."""
    try:
        return Journal(_records(storage))
    except UNREADABLE:
        set_journal_aside(storage)
        return Journal(_records(storage))


def _records(storage: Path | Database) -> Records:
    """Return the records of a file or a database.

    A broken line followed by an append would make a file unreadable for good, so it is cut off first. The caller holds
    the sweep's lock: there is no other writer.
    """
    if not isinstance(storage, Path):
        return TableRecords(storage)
    path = storage.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    repair_journal(path)
    return FileRecords(path)


def set_journal_aside(storage: Path | Database) -> None:
    """Rename a journal that cannot be used; the trials are read from their directories again."""
    if isinstance(storage, Path):
        set_aside(storage)
    else:
        set_rows_aside(storage)


UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError)
"""Exceptions that Optuna raises for complete records that are not its own."""


def attach(study: optuna.Study, trial_id: int) -> optuna.trial.Trial:
    """Return a trial that an earlier process asked for, to continue it: to suggest missing params, to report, to judge.

    Optuna has no public call for this and calls the constructor "not recommended"; this is its only use, and a test
    checks what is relied on.
    """
    return optuna.trial.Trial(study, trial_id)


def frozen(trial: optuna.trial.Trial) -> FrozenTrial:
    """Return the storage's own record of a trial; do not change it. (`study.trials` would copy all of them.)"""
    return trial.study._storage.get_trial(trial._trial_id)
