"""`saebench sweep`: what a person types, and what bad input gets: one line and an exit code, and nothing is left."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from saebench.cli import main
from saebench.cli.sweep import devices_setting
from saebench.sweep import SweepResult

SPEC = """
name: tiny
data:
  model: all-MiniLM-L6-v2
  dataset: {path: text, data_files: texts.txt}
  num_examples: 600
sae:
  - {type: topk, k: 4, dict_size: 64}
train: {samples: 2000, batch_size: 50, lr: 1e-3}
run: {devices: cpu, per_device: 1}
"""


class Ran(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def saebench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """The console script, in this process, in a folder with a spec and its texts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SAEBENCH_RUNS")
    (tmp_path / "spec.yaml").write_text(SPEC)
    (tmp_path / "texts.txt").write_text("".join(f"sentence number {n} about nothing\n" for n in range(700)))

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr("sys.argv", ["saebench", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr()
        return Ran(end.value.code if isinstance(end.value.code, int) else 0, said.out, said.err)

    return run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of `run_sweep`, which does nothing here."""
    seen: dict[str, Any] = {}

    def run_sweep(spec: Path, **named: Any) -> SweepResult:
        seen.update(named, spec=spec)
        return SweepResult("tiny", Path("runs/tiny"), 75)

    monkeypatch.setattr("saebench.sweep.run_sweep", run_sweep)
    return seen


def test_options_become_overrides_and_the_result_the_exit_code(
    saebench: Callable[..., Ran], asked: dict[str, Any]
) -> None:
    options = ["--devices", "0,GPU-1", "--per-device", "2", "--runs-dir", "r", "--cache-dir", "c", "--extend"]
    ran = saebench("sweep", "spec.yaml", "--set", "train.samples=1e5", *options)
    assert ran.code == 75
    assert asked["overrides"] == ["train.samples=1e5", "run.devices=[0, GPU-1]", "run.per_device=2"]
    assert (asked["runs_dir"], asked["cache_dir"], asked["extend"], asked["retry_failed"]) == ("r", "c", True, False)


@pytest.mark.parametrize(
    ("given", "setting"), [("cpu", "run.devices=cpu"), ("0", "run.devices=[0]"), ("0, 2", "run.devices=[0, 2]")]
)
def test_devices(given: str, setting: str) -> None:
    assert devices_setting(given) == setting


UNREADABLE = "name: [tiny\n"


@pytest.mark.parametrize(
    ("change", "arguments", "code", "says"),
    [
        ("", ["nowhere.yaml"], 2, "nowhere.yaml"),
        (UNREADABLE, [], 2, "spec.yaml:"),
        (SPEC + "nmae: x\n", [], 2, 'did you mean "name"'),
        (SPEC + "name: twice\n", [], 2, "name"),
        (SPEC.replace("k: 4", "k: 64"), [], 2, "k"),
        (SPEC.replace("topk", "topp"), [], 2, "topp"),
        (SPEC, ["--set", "train.samples=many"], 2, "train.samples"),
        (SPEC, ["--set", "nonsense"], 2, "nonsense"),
        (SPEC, ["--devices", "7"], 5, "run.devices: 7: no such GPU"),
        (SPEC, ["--set", "tracking.uri=http://127.0.0.1:9"], 5, "http://127.0.0.1:9"),
        (SPEC.replace("texts.txt", "gone.txt"), [], 5, "gone.txt"),
        (SPEC.replace("data_files:", "text_column: body, data_files:"), [], 5, "body"),
        (SPEC, ["--runs-dir", "texts.txt/runs"], 5, "cannot write here"),
        (SPEC, ["--runs-dir", "taken"], 5, "is not a sweep"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(
    saebench: Callable[..., Ran], tmp_path: Path, change: str, arguments: list[str], code: int, says: str
) -> None:
    if change:
        (tmp_path / "spec.yaml").write_text(change)
    (tmp_path / "taken" / "tiny").mkdir(parents=True)
    (tmp_path / "taken" / "tiny" / "thesis.tex").touch()
    before = set(tmp_path.rglob("*")) - set((tmp_path / "saebench-cache").rglob("*"))
    spec = [] if arguments[:1] == ["nowhere.yaml"] else ["spec.yaml"]
    ran = saebench("sweep", *spec, "--plain", *arguments)
    assert ran.code == code, ran
    assert says in ran.err
    assert ran.err.count("\n") == 1, ran.err
    assert "Traceback" not in ran.err
    after = {p for p in tmp_path.rglob("*") if "saebench-cache" not in str(p)}
    assert after == before


def test_a_missing_argument_is_usage(saebench: Callable[..., Ran]) -> None:
    ran = saebench("sweep")
    assert ran.code == 2
    assert "Missing argument 'SPEC'" in ran.err


@pytest.mark.slow
def test_a_real_sweep_its_status_and_again(
    saebench: Callable[..., Ran], tmp_path: Path, minilm_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real encoder, real trial, real processes; the second time nothing is encoded and nothing is trained."""
    assert minilm_path
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ran = saebench("sweep", "spec.yaml")
    assert ran.code == 0, ran
    assert f"{tmp_path / 'runs' / 'tiny'}" in ran.out
    assert str(tmp_path / "saebench-cache") in ran.out
    assert "encoding: " in ran.out
    assert "saebench report" in ran.out
    trial = tmp_path / "runs" / "tiny" / "trials" / "0000"
    assert (trial / "sae" / "sae.safetensors").is_file()
    assert (trial / "evaluation.safetensors").is_file()
    assert (tmp_path / "mlflow.db").is_file()
    written = {p: p.stat().st_mtime_ns for p in trial.rglob("*")}

    again = saebench("sweep", "spec.yaml")
    assert again.code == 0
    assert "encoding: " not in again.out
    assert {p: p.stat().st_mtime_ns for p in trial.rglob("*")} == written

    status = json.loads(saebench("status", "--json").out)
    assert status["counts"] == {"complete": 1}
    assert status["planned"] == 1
    assert status["scheduler"] is None
    assert status["trials"][0]["values"]["eval/l0"] == 4.0
    assert "1 trials of at most 1  1 complete" in saebench("status").out
    assert "trial 0000 attempt 1" in saebench("logs", "0").out
    assert os.listdir(tmp_path / "runs") == ["tiny"]
