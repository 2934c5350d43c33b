"""Nothing leaves the machine unbidden: commands and all processes that they start connect to loopback alone. Nor does a
secret get from a spec or the environment into what they write, print or pass on."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from leaks import CommandLines, files_with

from saebench import telemetry

RECORDER = """
import os, sys
def record(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        where = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        where = arguments[0]
    else:
        return
    with open(os.environ["CONNECTIONS"], "a") as file:
        file.write(f"{where!r} {sys.argv}\\n")
sys.addaudithook(record)
"""
"""A sitecustomize.py: every Python process that inherits PYTHONPATH writes down whom it speaks to."""
LOOPBACK = ("('127.0.0.1'", "'127.0.0.1'", "b'127.0.0.1'", "('::1'", "'localhost'", "b'localhost'", "None")
SPEC = """
name: traced
data:
  model: sentence-transformers/all-MiniLM-L6-v2
  dataset: {{path: json, data_files: {data}, text_column: text}}
  num_examples: 200
sae: [{{type: topk, k: 4, dict_size: 64}}]
train: {{samples: 256, batch_size: 32, lr: 1e-3}}
search: {{sampler: grid}}
eval: {{extra: none}}
run: {{devices: cpu}}
tracking: {{uri: "{uri}"}}
"""
SECRET = secrets.token_hex(8)
"""Of this run: other processes of the machine cannot have it on their command lines."""


@pytest.fixture
def traced(tmp_path: Path, minilm_path: str) -> dict[str, str]:
    """An environment as a new user's, with the recorder; the spec is in tmp_path."""
    assert minilm_path
    (tmp_path / "recorder").mkdir()
    (tmp_path / "recorder" / "sitecustomize.py").write_text(RECORDER)
    rows = [json.dumps({"text": f"an owl, number {i}"}) for i in range(200)]
    (tmp_path / "texts.jsonl").write_text("\n".join(rows))
    uri = f"sqlite:///{tmp_path}/mlflow.db?password={SECRET}"  # SQLite ignores it; a server's would be one
    (tmp_path / "spec.yaml").write_text(SPEC.format(data="texts.jsonl", uri=uri))
    off = {*telemetry.ENVIRONMENT, "HF_HUB_OFFLINE", "MLFLOW_TRACKING_URI"}
    kept = {name: value for name, value in os.environ.items() if name not in off and not name.startswith("SAEBENCH")}
    path = os.pathsep.join([str(tmp_path / "recorder"), str(Path(__file__).parents[1])])
    return kept | {"HOME": str(tmp_path / "home"), "PYTHONPATH": path, "CONNECTIONS": str(tmp_path / "connections"),
                   "MLFLOW_TRACKING_URI": uri}  # fmt: skip


def elsewhere(environment: dict[str, str]) -> list[str]:
    """What was asked for that is not this machine: names, addresses, and who asked."""
    file = Path(environment["CONNECTIONS"])
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in lines if not line.startswith(LOOPBACK) and not line.startswith(("'/", "b'/", "'\\x00"))]


@pytest.mark.slow
def test_no_command_asks_another_machine_or_passes_a_secret_on(traced: dict[str, str], tmp_path: Path) -> None:
    with CommandLines(SECRET) as command_lines:
        for words in ("plan spec.yaml", "cache build spec.yaml", "sweep spec.yaml", "report", "status", "ls"):
            arguments = words.split()
            ran = subprocess.run(
                [sys.executable, "-m", "saebench", *arguments], cwd=tmp_path, env=traced, capture_output=True, text=True
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
            assert SECRET not in ran.stdout + ran.stderr, arguments
        assert SECRET not in visit_ui(traced, tmp_path)
    assert Path(traced["CONNECTIONS"]).exists(), "the recorder saw the page's own connection at least"
    assert elsewhere(traced) == []
    assert not list((tmp_path / "home").rglob("telemetry.json")), "no installation id either"
    assert list((tmp_path / "mlruns").rglob("lock.json")), "the lock is among what was uploaded"
    assert files_with(tmp_path, SECRET, tmp_path / "spec.yaml") == []
    assert command_lines.seen == set()
    assert command_lines.looked or not Path("/proc").is_dir()


def visit_ui(environment: dict[str, str], folder: Path) -> str:
    """Start `saebench ui`, ask for a page, end it; return what it printed before its address."""
    command = [sys.executable, "-m", "saebench", "ui", "traced"]
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as ui:
        try:
            assert ui.stdout is not None
            printed = []
            for line in ui.stdout:
                printed.append(line)
                if "http://" in line:
                    break
            address = next(word for word in printed[-1].split() if word.startswith("http://"))
            end = time.monotonic() + 90
            while True:
                try:
                    urllib.request.urlopen(address, timeout=5).close()
                    return "".join(printed)
                except OSError:
                    assert time.monotonic() < end, "the server does not answer"
                    time.sleep(0.2)
        finally:
            ui.send_signal(signal.SIGTERM)


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.delenv("HF_UPDATE_DOWNLOAD_COUNTS", raising=False)
    telemetry.disable()
    assert (os.environ["MLFLOW_DISABLE_TELEMETRY"], os.environ["HF_UPDATE_DOWNLOAD_COUNTS"]) == ("false", "0")
