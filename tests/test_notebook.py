"""`run_sweep` in a notebook's kernel, whose main module no worker may import."""

from __future__ import annotations

import json
import queue
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_sweep import spec

pytest.importorskip("ipykernel", reason="ipykernel is not installed (extra [dev])")
client = pytest.importorskip("jupyter_client")

CELL = """
import asyncio, json, os, pathlib
import saebench
assert asyncio.get_running_loop().is_running()  # as in every notebook
with open("imported", "a") as file:
    file.write(str(os.getpid()) + "\\n")
result = saebench.run_sweep(json.loads({spec!r}), runs_dir="runs", target="sweep_toys:train")
print("ended with", result.exit_code, dict(result.counts))
"""


@pytest.fixture
def kernel(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a real kernel in tmp_path."""
    shutil.copy(empty_database, tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager = client.KernelManager()
    manager._kernel_spec = client.kernelspec.KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    manager.start_kernel(cwd=str(tmp_path))
    speaks = manager.client()
    speaks.start_channels()
    try:
        speaks.wait_for_ready(timeout=60)
        yield speaks
    finally:
        speaks.stop_channels()
        manager.shutdown_kernel(now=True)


def run(kernel: Any, code: str) -> str:
    """What a cell prints, errors included."""
    kernel.execute(code)
    said = []
    while True:
        try:
            message = kernel.get_iopub_msg(timeout=120)
        except queue.Empty:
            pytest.fail("the kernel says nothing more: " + "".join(said))
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            said.append(content["text"])
        elif kind == "error":
            said += content["traceback"]
        elif kind == "status" and content["execution_state"] == "idle":
            return "".join(said)


@pytest.mark.slow
def test_a_sweep_runs_in_a_notebook_and_no_worker_runs_its_cells(kernel: Any, tmp_path: Path) -> None:
    printed = run(kernel, CELL.format(spec=json.dumps(spec())))
    assert "ended with 0 {'complete': 4}" in printed, printed
    assert "\x1b" not in printed, "plain lines, no live screen"
    assert len((tmp_path / "imported").read_text().splitlines()) == 1
