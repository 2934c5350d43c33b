"""Any one file of a sweep's directory deleted, emptied, cut or flipped: the next start gives the same tables, or a line
that names the file and exit code 3."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sweep_toys
from click.testing import CliRunner

from saebench.cli import cli
from saebench.config import TrialConfig
from saebench.plan import make_plan
from saebench.runs.board import Board
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import read_config, read_state
from saebench.scheduler.ledger import Ledger
from saebench.scheduler.recovery import recover
from saebench.spec import parse_spec
from saebench.study import Search
from saebench.sweep import run_sweep

SPEC: dict[str, Any] = sweep_toys.spec(
    sae=[{"type": "topk", "k": 4, "dict_size": 64}],
    train__samples=200,
    train__lr={"low": 1e-3, "high": 1e-1, "log": True},
    search={"sampler": "qmc", "points": 3, "refine": 1},
    run={"executor": "in_process"},
)
PLAN = make_plan(parse_spec(SPEC), 384)
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda _: None,
    "emptied": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}
FILES = ["lock.json", "spec.yaml", "optuna.journal", "tracking.json", "scheduler.log"]
TRIAL_FILES = ["config.json", "state.json", "events.jsonl", "log.txt", "evaluation.safetensors"]
TRIAL_FILES += ["sae/sae.json", "sae/sae.safetensors"]
TRIALS = [1, 4]
"""One that searched, one that compares."""


def train(config: TrialConfig, paths: TrialPaths, device: str, report: Callable[[Event], Verdict], **more: Any) -> None:
    """The toy, which leaves an evaluation and an SAE too."""

    def reported(event: Event) -> Verdict:
        if event.type == "done":
            paths.evaluation.write_bytes(bytes(range(200)))
            paths.sae.mkdir()
            (paths.sae / "sae.json").write_text('{"format_version": 1}')
            (paths.sae / "sae.safetensors").write_bytes(bytes(range(100)))
            paths.log.write_text("said")
        return report(event)

    sweep_toys.train(config, paths, device, reported, **more)


TARGET = "test_damage:train"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """A project with a sweep that has ended, made once."""
    home = tmp_path_factory.mktemp("complete")
    shutil.copy(empty_database, home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        patch.chdir(home)
        result = run_sweep(SPEC, runs_dir=home / "runs", target=TARGET, quiet=True)
    assert result.ok
    assert sum(result.counts.values()) == 5, "3 drawn, 1 refined, 1 that compares"
    return home


def table(root: Path) -> list[tuple[Any, ...]]:
    """Trial, stratum, point, seed, state and final values, as the directory has them."""
    found: list[tuple[Any, ...]] = []
    for trial in SweepPaths(root).trials():
        config, state = read_config(trial), read_state(trial)
        assert config is not None
        assert state is not None
        values = sorted(state.values.items())
        found.append((config.number, config.point, config.seed, config.train.lr, state.state, values))
    return found


def copy(complete: Path, tmp_path: Path) -> Path:
    """The project again; returns its sweep's directory."""
    shutil.copy(complete / "mlflow.db", tmp_path)
    shutil.copytree(complete / "runs", tmp_path / "runs")
    return tmp_path / "runs" / "toy"


def harm(path: Path, damage: str) -> None:
    data = DAMAGES[damage](path.read_bytes())
    path.unlink() if data is None else path.write_bytes(data)


def recovered(root: Path) -> tuple[list[str], list[str]]:
    """Lines about what is lost, and notes about what was rebuilt, of a start on this directory."""
    paths, notes = SweepPaths(root), []
    search = Search(PLAN, paths.journal)
    found = recover(Ledger(paths, search, Deaf(), Board("toy")), search, note=notes.append)
    assert not found.waiting
    assert search.done
    return found.lost, notes


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_of_the_sweep_is_rebuilt_or_said(complete: Path, tmp_path: Path, name: str, damage: str) -> None:
    before, root = table(complete / "runs" / "toy"), copy(complete, tmp_path)
    harm(root / name, damage)
    result = run_sweep(SPEC, runs_dir=tmp_path / "runs", target=TARGET, quiet=True)
    assert table(root) == before
    assert result.counts == {"complete": 5}
    said = (root / "scheduler.log").read_text("utf-8", "replace")
    assert result.exit_code == (3 if f"damaged: {root / name}" in said else 0)
    assert (result.exit_code == 3) == (name == "lock.json")
    assert len(result.frame()) == 5, "every trial has one run in MLflow"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TRIAL_FILES)
@pytest.mark.parametrize("number", TRIALS)
def test_a_damaged_file_of_a_trial_is_rebuilt_or_said(
    complete: Path, tmp_path: Path, number: int, name: str, damage: str
) -> None:
    before, root = table(complete / "runs" / "toy"), tmp_path / "toy"
    shutil.copytree(complete / "runs" / "toy", root)
    path = SweepPaths(root).trial(number).root / name
    whole, state = path.read_bytes(), read_state(SweepPaths(root).trial(number))
    assert state is not None
    harm(path, damage)
    lost, notes = recovered(root)
    assert table(root) == before
    if name in ("config.json", "state.json"):
        assert not lost
        assert any(str(path) in note for note in notes)
        assert recovered(root) == ([], []), "written again, once"
        again = read_state(SweepPaths(root).trial(number))
        assert again is not None
        assert again.files == state.files, "so that a later loss of any of them is noticed"
    elif name != "log.txt":
        assert [line.split(": ")[0] for line in lost] == [str(path)]
        path.write_bytes(whole)
        assert recovered(root) == ([], []), "put back from elsewhere"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.json", "state.json"])
def test_status_alone_says_what_a_trial_has_lost(complete: Path, tmp_path: Path, name: str, damage: str) -> None:
    root = copy(complete, tmp_path)
    assert CliRunner().invoke(cli, ["status", str(root)]).exit_code == 0
    path = SweepPaths(root).trial(1).root / name
    harm(path, damage)
    seen = CliRunner().invoke(cli, ["status", str(root)])
    as_json = CliRunner().invoke(cli, ["status", str(root), "--json"])
    assert (seen.exit_code, as_json.exit_code) == (3, 3), seen.output
    assert str(path) in seen.output.replace("\n", "")
    assert str(path) in as_json.stderr
    assert len(json.loads(as_json.stdout)["trials"]) == (5 if name == "config.json" else 4)


def test_a_trial_whose_directory_was_deleted_is_said_at_every_start(complete: Path, tmp_path: Path) -> None:
    root = copy(complete, tmp_path)
    shutil.rmtree(root / "trials" / "0001")
    first = run_sweep(SPEC, runs_dir=tmp_path / "runs", target=TARGET, quiet=True)
    assert first.exit_code == 3
    assert f"damaged: {root}/trials/0001: is missing" in (root / "scheduler.log").read_text()
    assert len(first.frame()) == 5


def test_one_byte_of_the_journal_gives_no_point_the_value_of_another(complete: Path, tmp_path: Path) -> None:
    """Wherever the byte is: what Optuna knows of every number is that trial's own point and value."""
    whole = (complete / "runs" / "toy" / "optuna.journal").read_bytes()
    expected = table(complete / "runs" / "toy")
    for place in range(7, len(whole), len(whole) // 25):
        root = tmp_path / str(place)
        shutil.copytree(complete / "runs" / "toy", root)
        paths = SweepPaths(root)
        paths.journal.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        search = Search(PLAN, paths.journal)
        recover(Ledger(paths, search, Deaf(), Board("toy")), search)
        assert table(root) == expected
        assert search.done
        for number, point, seed, lr, _, values in expected:
            config, ended = search.config(number), search.ended(number)
            assert config is not None
            assert ended is not None
            assert (config.point, config.seed, config.train.lr) == (point, seed, lr)
            assert search._trials[number].value == dict(values)["eval/fvu"]


class Deaf:
    """A tracker that keeps nothing."""

    def open(self, config: Any, tags: dict[str, str]) -> None: ...
    def close_trial(self, number: int, state: Any, reason: str, tags: dict[str, str]) -> None: ...
    def lag(self) -> tuple[int, str | None]:
        return 0, None
