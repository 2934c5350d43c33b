"""Rules about failures: pure functions, each to be read and tested alone."""

from __future__ import annotations

from collections import defaultdict

from saebench.runs.events import FailureKind
from saebench.runs.state import TrialState
from saebench.sweep_config import FailuresConfig, RetriesConfig

FAILURE_LABELS: dict[FailureKind, str] = {
    "cuda_oom": "out of GPU memory",
    "host_oom": "memory",
    "diverged": "diverged",
    "collapsed": "collapsed",
    "crash": "crashed",
    "stall": "stalled",
    "user_error": "cannot run",
    "killed": "killed",
    "no_space": "no space left on the disk",
    "lost": "its machine was lost",
    "preempted": "its machine was reclaimed",
}
_BAD_DEVICE: frozenset[FailureKind] = frozenset({"crash", "stall"})
FAULTLESS: frozenset[FailureKind] = frozenset({"lost", "preempted"})
"""Failures that are the fault of neither the trial nor its device: a sweep does not give up for these."""


def may_retry(kind: FailureKind, trial: TrialState, retries: RetriesConfig, *, shared: bool) -> bool:
    """Return whether a trial whose newest attempt ended with `kind` gets another one. `shared`: other trials ran on its
    device."""
    if kind == "user_error":
        return False
    if kind == "cuda_oom" and not shared:
        return False
    allowed: int = getattr(retries, "crash" if kind == "killed" else kind)
    return trial.failures(kind) <= allowed


def abort_reason(failed: int, ended: int, config: FailuresConfig) -> str:
    """Return why the sweep gives up; empty if it does not."""
    if ended < config.abort_min or failed < config.abort_fraction * ended or not failed:
        return ""
    return (
        f"{failed} of {ended} ended trials failed "
        f"(run.failures.abort_fraction = {config.abort_fraction:g}, abort_min = {config.abort_min})"
    )


class DeviceRecord:
    """Crashes in a row on each device. One bad trial must not exclude a good device, so the row must contain at least
    two different trials; an attempt that ends without a failure clears it."""

    def __init__(self, config: FailuresConfig) -> None:
        self._limit = config.quarantine_after
        self._rows: dict[str, list[int]] = defaultdict(list)

    def note(self, device: str, number: int, kind: FailureKind | None) -> bool:
        """Record the end of an attempt of trial `number` on `device`; return True if the device should be taken out of
        service."""
        row = self._rows[device]
        if kind is None:
            row.clear()
        elif kind in _BAD_DEVICE:
            row.append(number)
        return len(row) >= self._limit and len(set(row)) >= min(2, self._limit)
