"""A server that is run in the foreground ends with us, and so does what it started."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from waiting import wait_for

from saebench.cli.serve import serve

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")
SERVER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
STUBBORN = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("not yet", flush=True))
print(os.getpid(), flush=True)
time.sleep(600)
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
        assert us.wait(60) == status
    wait_for(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in (server, child)))


def test_a_second_signal_ends_a_server_that_takes_its_time() -> None:
    with subprocess.Popen([sys.executable, "-c", US, STUBBORN], stdout=subprocess.PIPE, text=True) as us:
        assert us.stdout is not None
        server = psutil.Process(int(us.stdout.readline()))
        us.send_signal(signal.SIGTERM)
        assert us.stdout.readline() == "not yet\n"
        us.send_signal(signal.SIGTERM)
        assert us.wait(60) == 143
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def _handlers() -> Iterator[None]:
    """`serve` takes over signals of its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("_handlers")
def test_it_is_called_ready_when_it_answers_and_not_before(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"import http.server as h; h.HTTPServer(('127.0.0.1', {port}), h.SimpleHTTPRequestHandler).handle_request()"
    called: list[bool] = []
    status = serve([sys.executable, "-c", code], None, f"http://127.0.0.1:{port}/", lambda: called.append(True))
    assert (status, called) == (0, [True]), tmp_path


@pytest.mark.usefixtures("_handlers")
def test_a_server_that_ends_before_it_answers_is_not_called_ready() -> None:
    called: list[bool] = []
    status = serve(
        [sys.executable, "-c", "raise SystemExit(4)"], None, "http://127.0.0.1:1/", lambda: called.append(True)
    )
    assert (status, called) == (4, [])


def test_its_exit_status_is_ours() -> None:
    ended = subprocess.run([sys.executable, "-c", US, "raise SystemExit(3)"], check=False)
    assert ended.returncode == 3
