"""A server that is run in the foreground ends with us, and so does what it started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
print(os.getpid(), flush=True)
time.sleep(60)
"""
US = "import sys; from saebench.cli.serve import serve; sys.exit(serve([sys.executable, '-c', sys.argv[1]]))"


@pytest.mark.parametrize(("sent", "status"), [("SIGINT", 0), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_nothing_of_it_is_left(sent: str, status: int) -> None:
    with subprocess.Popen([sys.executable, "-c", US, SERVER], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        child = psutil.Process(int(us.stdout.readline()))
        server = child.parent()
        assert server is not None
        us.send_signal(getattr(signal, sent))
        assert us.wait(20) == status
    end = time.monotonic() + 10
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in (server, child)):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.05)


def test_a_second_signal_ends_a_server_that_takes_its_time() -> None:
    with subprocess.Popen([sys.executable, "-c", US, STUBBORN], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        server = psutil.Process(int(us.stdout.readline()))
        us.send_signal(signal.SIGTERM)
        assert us.stdout.readline() == "not yet\n"
        us.send_signal(signal.SIGTERM)
        assert us.wait(20) == 143
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


def test_its_exit_status_is_ours() -> None:
    ended = subprocess.run([sys.executable, "-c", US, "raise SystemExit(3)"], check=False)
    assert ended.returncode == 3
