"""Files are whole or not there, and what a killed writer left goes away."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench.errors import PreflightError
from saebench.runs.durable import write_json, write_text
from saebench.runs.paths import SweepPaths, cache_dir, runs_dir


def test_left_overs_of_killed_writers_go_and_everything_else_stays(tmp_path: Path) -> None:
    sweep = SweepPaths(tmp_path / "s")
    write_text(sweep.spec, "name: s")
    write_json(sweep.trial(3).state, {"state": "running"})
    left = [sweep.root / ".tracking.json.7091.tmp", sweep.trial(3).root / ".state.json.12.tmp"]
    left.append(sweep.trial(3).sae / ".sae.safetensors.0123abcd.tmp")
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{")
    sweep.remove_left_overs()
    assert not [path for path in left if path.exists()]
    assert sweep.spec.exists()
    assert sweep.trial(3).state.exists()


def test_trials_are_listed_by_number(tmp_path: Path) -> None:
    sweep = SweepPaths(tmp_path)
    for number in (10, 2, 12345, 9999):
        sweep.trial(number).root.mkdir(parents=True)
    (tmp_path / "trials" / "0002.lost-1").mkdir()
    assert [trial.root.name for trial in sweep.trials()] == ["0002", "0010", "9999", "12345"]


def test_places_come_from_the_argument_then_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAEBENCH_RUNS", str(tmp_path / "env"))
    assert runs_dir() == tmp_path / "env"
    assert runs_dir(tmp_path / "given") == tmp_path / "given"
    monkeypatch.delenv("SAEBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "saebench"


def test_without_a_home_the_argument_will_do_and_its_lack_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "SAEBENCH_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_dir(tmp_path / "given") == tmp_path / "given"
    with pytest.raises(PreflightError, match=r"no home directory.*--cache-dir"):
        cache_dir()


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
