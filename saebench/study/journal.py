"""Optuna's storage: one file that only the scheduler writes, and the two places where Optuna has to be gone around."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial


def open_journal(path: Path) -> JournalStorage:
    """The storage in `path`, put in order after a crash.

    A torn last line followed by any append would make the journal unreadable for good, so it is cut off first; a lock
    that a killed process left would cost Optuna's 30 seconds of grace. Only whoever holds the sweep's own lock calls
    this, so that neither can belong to a living writer.
    """
    path = path.absolute()  # a relative path and a stale lock make Optuna spin for ever
    path.parent.mkdir(parents=True, exist_ok=True)
    repair_journal(path)
    for left in path.parent.glob(f"{path.name}.lock*"):
        left.unlink(missing_ok=True)
    lock = JournalFileOpenLock(str(path))
    return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))


def repair_journal(path: Path) -> None:
    """Cut off what a crash or a lost block left behind the last whole record."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        end = data.rfind(b"\n") + 1
        while end and not _is_record(data[data.rfind(b"\n", 0, end - 1) + 1 : end]):
            end = data.rfind(b"\n", 0, end - 1) + 1
        if end != len(data):
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
