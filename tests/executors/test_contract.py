"""What every executor promises, shown on all of them."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from drive import drive, drive_one, trial

from saebench.executors import Executor, ExitMessage
from saebench.runs.events import Event, Verdict, read


def test_a_trial_that_ends_well(executor: Executor, tmp_path: Path) -> None:
    attempt = trial(tmp_path, "count", samples=20)
    ended = drive_one(executor, attempt)
    assert ended.exit == ExitMessage(0, None, "done")
    assert ended.types == ["start", "eval", "checkpoint", "eval", "checkpoint", "done"]
    recorded = [event for event, _ in read(attempt.paths.events)]
    assert recorded == ended.events


def test_prune_and_leave_end_the_trial_as_left(executor: Executor, tmp_path: Path) -> None:
    def answer(number: int, event: Event) -> Verdict:
        if event.samples < 20:
            return Verdict.GO
        return Verdict.PRUNE if number == 0 else Verdict.LEAVE

    ended = drive(executor, [trial(tmp_path, "count", 0), trial(tmp_path, "count", 1)], answer)
    assert [ended[n].exit for n in (0, 1)] == [ExitMessage(0, None, "prune"), ExitMessage(1, None, "leave")]
    assert [ended[n].events[-1].samples for n in (0, 1)] == [20, 20]


def test_an_attempt_goes_on_and_doubles_no_record(executor: Executor, tmp_path: Path) -> None:
    first = trial(tmp_path, "count", samples=40)
    drive_one(executor, first, lambda _, event: Verdict.LEAVE if event.samples == 20 else Verdict.GO)
    second = drive_one(executor, trial(tmp_path, "count", attempt=2, samples=40))
    assert second.events[0].samples == 20
    assert second.events[0].attempt == 2
    evals = [event.samples for event, _ in read(first.paths.events) if event.type == "eval"]
    assert evals == [10, 20, 30, 40]


@pytest.mark.parametrize(
    ("toy", "kind", "detail"),
    [
        ("crashes", "crash", "RuntimeError: the sky"),
        ("diverges", "diverged", "FloatingPointError: train/loss is nan at 300 samples"),
        ("has_bad_data", "user_error", "no column text"),
        ("exits", "crash", "SystemExit: 3"),
    ],
)
def test_an_exception_is_classified_and_told_in_one_line(
    executor: Executor, tmp_path: Path, toy: str, kind: str, detail: str
) -> None:
    ended = drive_one(executor, trial(tmp_path, toy))
    assert (ended.exit.kind, ended.exit.detail) == (kind, detail)


def test_a_failure_is_on_record_with_its_traceback(in_process: Executor, tmp_path: Path) -> None:
    attempt = trial(tmp_path, "crashes")
    drive_one(in_process, attempt)
    ((failed, _),) = read(attempt.paths.events)
    assert failed.type == "failed"
    assert failed.info["kind"] == "crash"
    assert "toys.py" in failed.info["traceback"]
    assert "is falling" in failed.info["traceback"]


def test_stop_leave_is_seen_at_the_next_step(executor: Executor, tmp_path: Path) -> None:
    def answer(number: int, event: Event) -> Verdict | None:
        if event.type == "checkpoint" and event.samples == 10:
            executor.stop(number, "leave")
        return Verdict.GO

    ended = drive_one(executor, trial(tmp_path, "count", samples=100_000), answer)  # 100 s, if it went on
    assert ended.exit == ExitMessage(0, None, "leave")
    assert ended.events[-1].samples < 100_000


def test_stop_kill_ends_a_trial_that_waits_for_a_verdict(executor: Executor, tmp_path: Path) -> None:
    def answer(number: int, event: Event) -> None:
        if event.type == "eval":
            executor.stop(number, "kill")
            executor.stop(number, "kill")

    ended = drive_one(executor, trial(tmp_path, "count"), answer)
    assert ended.exit == ExitMessage(0, "killed", "killed")


def test_a_slot_holds_one_trial(executor: Executor, tmp_path: Path) -> None:
    first, second = executor.slots
    executor.start(trial(tmp_path, "quick", 0), first)
    with pytest.raises(RuntimeError, match="not free"):
        executor.start(trial(tmp_path, "quick", 1), first)
    with pytest.raises(RuntimeError, match="trial 0 is running"):
        executor.start(trial(tmp_path, "quick", 0), second)
    left = 1
    while left:
        left -= sum(isinstance(message, ExitMessage) for message in executor.poll(5))
    executor.start(trial(tmp_path, "quick", 1), first)
    while not any(isinstance(message, ExitMessage) for message in executor.poll(5)):
        pass


def test_words_to_a_trial_that_is_over_are_ignored(executor: Executor, tmp_path: Path) -> None:
    drive_one(executor, trial(tmp_path, "quick"))
    executor.answer(0, Verdict.GO)
    executor.stop(0, "leave")
    executor.stop(0, "kill")
    assert executor.poll(0) == []


def test_poll_waits_no_longer_than_it_is_told(executor: Executor) -> None:
    begin = time.monotonic()
    assert executor.poll(0.1) == []
    assert 0.09 < time.monotonic() - begin < 60


def test_quarantine_takes_all_slots_of_the_device(in_process: Executor) -> None:
    in_process.quarantine(in_process.slots[0])
    assert in_process.slots == ()


@pytest.mark.parametrize("when", ["before", "during"])
def test_wake_ends_the_wait_of_one_poll(executor: Executor, when: str) -> None:
    if when == "before":
        executor.wake()
    else:
        threading.Timer(0.2, executor.wake).start()
    begin = time.monotonic()
    assert executor.poll(120) == []
    assert time.monotonic() - begin < 60
    assert executor.poll(0) == []
