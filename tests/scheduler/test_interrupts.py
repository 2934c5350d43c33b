"""Signals: the first asks to leave, the second to leave now, and a third is not argued with."""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from saebench.scheduler.interrupts import Interrupts


@pytest.fixture(autouse=True)
def terminal() -> Iterator[None]:
    """A terminal that can be closed: under nohup, SIGHUP is ignored from the start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(name: str) -> None:
    os.kill(os.getpid(), getattr(signal, name))


@pytest.mark.parametrize(("name", "code", "why"), [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 75, "SIGTERM")])
def test_levels_and_exit_codes(name: str, code: int, why: str) -> None:
    with Interrupts() as signals:
        signals.patient = True
        assert (signals.level, signals.why) == (0, "")
        send(name)
        assert (signals.level, signals.exit_code, signals.why) == (1, code, why)
        send(name)
        assert signals.level == 2
        with pytest.raises(KeyboardInterrupt):
            send(name)


def test_usr1_of_slurm_is_resumable_and_ctrl_c_after_it_is_ctrl_c() -> None:
    with Interrupts() as signals:
        signals.patient = True
        send("SIGUSR1")
        assert (signals.level, signals.exit_code) == (1, 75)
        send("SIGINT")
        assert (signals.level, signals.exit_code) == (2, 130)


def test_a_closed_terminal_asks_to_leave_and_nohup_does_not() -> None:
    with Interrupts() as signals:
        signals.patient = True
        send("SIGHUP")
        assert (signals.level, signals.exit_code, signals.why) == (1, 75, "SIGHUP")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as signals:
            send("SIGHUP")
            assert signals.level == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_printed_to_a_closed_terminal_goes_nowhere() -> None:
    ours, theirs = os.openpty()
    kept = os.dup(1)
    os.dup2(theirs, 1)
    try:
        with Interrupts() as signals:
            signals.patient = True
            os.close(ours)
            with pytest.raises(OSError, match="Input/output error"):
                os.write(1, b"x")
            send("SIGHUP")
            assert os.write(1, b"x") == 1
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(theirs)


def test_before_the_trials_a_signal_ends_what_is_going_on() -> None:
    with Interrupts() as signals:
        with pytest.raises(KeyboardInterrupt):
            send("SIGTERM")
        assert signals.exit_code == 75


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_that_is_not_pythons_is_no_stumbling_block() -> None:
    """`faulthandler.register(signal.SIGUSR1)`, as jobs of Slurm do, shows as None."""
    faulthandler.register(signal.SIGUSR1)
    try:
        with Interrupts() as signals:
            signals.patient = True
            send("SIGUSR1")
            assert signals.why == "SIGUSR1"
        assert signal.getsignal(signal.SIGUSR1) != signals._note
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        faulthandler.unregister(signal.SIGUSR1)


TWICE = """
import os, signal, time
from saebench.scheduler.interrupts import Interrupts
with Interrupts() as signals:
    signals.patient = True
    os.kill(os.getpid(), signal.{name})
os.kill(os.getpid(), signal.{name})  # while the interpreter ends, say
time.sleep(10)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75)])
def test_a_second_signal_after_the_sweep_has_ended_changes_no_exit_code(name: str, code: int) -> None:
    run = subprocess.run([sys.executable, "-c", TWICE.format(name=name)], timeout=60)
    assert run.returncode == code


def test_a_second_signal_before_there_is_patience_does_not_interrupt_the_end_again() -> None:
    with Interrupts() as signals:
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")
        send("SIGINT")
        assert signals.level == 2
        with pytest.raises(KeyboardInterrupt):
            send("SIGINT")


def test_outside_the_main_thread_there_are_no_handlers() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def elsewhere() -> None:
        with Interrupts() as signals:
            seen.append((signals.level, signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert seen == [(0, True)]
