"""Workers on this machine whose scheduler died."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable

import psutil

from saebench.runs import events
from saebench.runs.events import Event
from saebench.runs.paths import TrialPaths

ORPHAN_GRACE = 60.0
"""Seconds that workers of an earlier scheduler have to write a checkpoint before they are killed."""


def await_orphans(trials: Iterable[TrialPaths], note: Callable[[str], None], grace: float = ORPHAN_GRACE) -> None:
    """Wait for workers of an earlier scheduler to write their checkpoints and exit; kill those that do not."""
    orphans = [p for trial in trials if (p := _worker_of(trial)) is not None]
    if not orphans:
        return
    note(f"waiting for {len(orphans)} workers of the last scheduler to exit")
    _, alive = psutil.wait_procs(orphans, timeout=grace)
    for process in alive:
        note(f"process {process.pid} did not exit in time and is killed")
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5.0)


def _worker_of(trial: TrialPaths) -> psutil.Process | None:
    """Return the process of the trial's newest attempt if it is alive: the pid of the last `start` event on this
    machine, leader of its group and with the trial's log open (pids are reused, and clocks can change)."""
    start: Event | None = None
    for event, _ in events.read(trial.events):
        if event.type == "start":
            start = event
        elif event.type in ("done", "left", "failed"):
            start = None
    if start is None or "pid" not in start.info:
        return None
    try:
        process = psutil.Process(int(start.info["pid"]))
        leads = os.getpgid(process.pid) == process.pid and process.status() != psutil.STATUS_ZOMBIE
        return process if leads and str(trial.log.resolve()) in {file.path for file in process.open_files()} else None
    except (psutil.Error, OSError, ValueError, TypeError, OverflowError):
        return None
