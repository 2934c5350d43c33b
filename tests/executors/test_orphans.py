"""Workers that outlive their scheduler are found by what only they can have: the trial's log, open."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from saebench.executors.orphans import await_orphans
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import TrialPaths

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="process groups")
WORKER = "import sys, time; log = open(sys.argv[1], 'a'); print('open', flush=True); time.sleep(60)"


@pytest.fixture
def trial(tmp_path: Path) -> TrialPaths:
    return TrialPaths(tmp_path / "trials" / "0000")


@pytest.fixture
def orphan(trial: TrialPaths) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own that writes to the trial's log."""
    trial.root.mkdir(parents=True)
    command = [sys.executable, "-c", WORKER, str(trial.log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def started(trial: TrialPaths, pid: int, *, ts: int | None = None) -> None:
    log = EventLog(trial.events)
    log.append(Event("start", 0, info={"pid": pid}) if ts is None else Event("start", 0, info={"pid": pid}, ts=ts))
    log.close()


def test_a_worker_that_does_not_leave_is_killed(trial: TrialPaths, orphan: subprocess.Popen[str]) -> None:
    notes: list[str] = []
    started(trial, orphan.pid)
    await_orphans([trial], notes.append, grace=0.1)
    assert not psutil.pid_exists(orphan.pid)
    assert notes == [
        "waiting for 1 workers of the last scheduler to exit",
        f"process {orphan.pid} did not exit in time and is killed",
    ]


def test_a_clock_that_was_set_hides_no_worker(trial: TrialPaths, orphan: subprocess.Popen[str]) -> None:
    """Its `start` event was written a day ago by the clock, before the process was born."""
    started(trial, orphan.pid, ts=int(psutil.Process(orphan.pid).create_time() * 1000) - 86_400_000)
    await_orphans([trial], lambda _: None, grace=0.1)
    assert not psutil.pid_exists(orphan.pid)


def test_a_process_that_got_the_number_of_a_dead_worker_is_left_alone(
    orphan: subprocess.Popen[str], tmp_path: Path
) -> None:
    other = TrialPaths(tmp_path / "trials" / "0001")
    started(other, orphan.pid)
    await_orphans([other], pytest.fail, grace=0.1)
    assert orphan.poll() is None
