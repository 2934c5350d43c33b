"""One scheduler per sweep, and a spec that stays what it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fakes import trial_config

from saebench.config import TrialConfig
from saebench.errors import LockedError, PreflightError, SpecError
from saebench.runs.holder import describe, hold_sweep_dir, holder
from saebench.runs.lock import check_unchanged, differences, git, is_extension, is_moved, provenance, read_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.state import same_trial

SPEC: dict[str, Any] = {
    "name": "x",
    "seeds": [0, 1],
    "sae": [{"type": "topk", "k": [16, 32]}],
    "train": {"samples": 100, "lr": {"low": 0.1, "high": 1.0}},
    "search": {"points": 4, "sampler": "tpe"},
    "run": {"devices": "auto", "per_device": None, "failures": {"stall_after": 600.0}},
    "budget": {"wall_hours": None},
}


def changed(**values: Any) -> dict[str, Any]:
    new: dict[str, Any] = json.loads(json.dumps(SPEC))
    for key, value in values.items():
        *path, last = key.split("__")
        place = new
        for part in path:
            place = place[part]
        place[last] = value
    return new


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    return SweepPaths(tmp_path / "runs" / "x")


HOLD = """
import sys, time
from pathlib import Path
from saebench.runs.holder import Holder
from saebench.runs.paths import SweepPaths
from saebench.runs.state import same_trial
held = Holder(SweepPaths(Path(sys.argv[1]))).acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def other(paths: SweepPaths) -> Iterator[subprocess.Popen[str]]:
    """Another process that works on the sweep."""
    paths.root.mkdir(parents=True)
    command = [sys.executable, "-c", HOLD, str(paths.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_scheduler_is_told_who_holds_the_sweep(paths: SweepPaths, other: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(LockedError, match=rf"process {other.pid} on {os.uname().nodename}") as error,
        hold_sweep_dir(paths),
    ):
        pass
    assert error.value.exit_code == 6
    assert paths.root.exists()
    found = holder(paths)
    assert found is not None
    assert found["pid"] == other.pid


def test_kill_9_of_the_holder_leaves_no_lock(paths: SweepPaths, other: subprocess.Popen[str]) -> None:
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert holder(paths) is None
    with hold_sweep_dir(paths):
        assert f"process {os.getpid()} on" in describe(paths)
    assert not paths.holder.exists()


def test_a_pid_that_is_used_again_does_not_hold_the_sweep(paths: SweepPaths) -> None:
    paths.root.mkdir(parents=True)
    with hold_sweep_dir(paths):
        found = json.loads(paths.holder.read_text())
        paths.holder.write_text(json.dumps({**found, "born": found["born"] + "0"}))
        assert holder(paths) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"pid": 1, "host": "elsewhere"}', '{"pid": "x", "born": 1}'])
def test_a_file_that_names_no_holder_names_none(paths: SweepPaths, text: str) -> None:
    paths.root.mkdir(parents=True)
    paths.holder.write_text(text)
    assert holder(paths) is None
    assert describe(paths) == "a process that has just started"


def test_a_holder_on_another_host_is_believed(paths: SweepPaths) -> None:
    paths.root.mkdir(parents=True)
    paths.holder.write_text(json.dumps({"pid": 1, "host": "elsewhere", "born": "", "since": 1.0, "at": "noon"}))
    assert describe(paths) == "process 1 on elsewhere, since noon"


def test_a_clock_that_is_set_changes_nothing(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil reckons a process's start from the boot time, which moves with the clock (suspended laptops, NTP)."""
    with hold_sweep_dir(paths):
        monkeypatch.setattr(psutil.Process, "create_time", lambda _: time.time() + 3600)
        assert holder(paths) is not None


def test_where_the_kernel_does_not_name_its_boot_a_sweep_is_held_all_the_same(
    paths: SweepPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saebench.runs.holder._BOOT", tmp_path / "not there")
    with hold_sweep_dir(paths):
        assert holder(paths) is not None


def test_a_holder_that_nobody_has_reaped_is_gone(paths: SweepPaths, other: subprocess.Popen[str]) -> None:
    os.kill(other.pid, signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert holder(paths) is None


def fails(paths: SweepPaths, *, begun: bool) -> None:
    with hold_sweep_dir(paths):
        assert paths.holder.exists()
        if begun:
            paths.lock.write_text("{}")
        raise ZeroDivisionError


def test_a_start_that_fails_leaves_nothing(paths: SweepPaths) -> None:
    with pytest.raises(ZeroDivisionError):
        fails(paths, begun=False)
    assert not paths.root.parent.exists()


def test_a_sweep_that_has_begun_stays_when_it_fails(paths: SweepPaths) -> None:
    with pytest.raises(ZeroDivisionError):
        fails(paths, begun=True)
    assert paths.lock.exists()


def test_a_directory_that_is_not_a_sweep_is_not_touched(paths: SweepPaths) -> None:
    paths.root.mkdir(parents=True)
    (paths.root / "thesis.tex").write_text("years of work")
    with pytest.raises(PreflightError, match="is not a sweep"), hold_sweep_dir(paths):
        pass
    assert [p.name for p in paths.root.iterdir()] == ["thesis.tex"]


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with (
        pytest.raises(PreflightError, match="cannot write here") as error,
        hold_sweep_dir(SweepPaths(tmp_path / "runs/x")),
    ):
        pass
    assert error.value.exit_code == 5
    assert "\n" not in str(error.value)


def test_the_same_spec_agrees(paths: SweepPaths) -> None:
    assert check_unchanged(SPEC, changed(), paths, extend=False) == {}


def test_a_changed_spec_is_refused_with_a_readable_diff(paths: SweepPaths) -> None:
    new = changed(train__samples=200, sae=[{"type": "topk", "k": [16, 64]}, {"type": "vanilla"}])
    with pytest.raises(SpecError) as error:
        check_unchanged(SPEC, new, paths, extend=True)
    lines = str(error.value).splitlines()
    assert "differs from the one" in lines[0]
    assert lines[1:-1] == [
        "  sae[0].k: [16, 32] -> [16, 64]",
        "  train.samples: 100 -> 200",
        '  sae[1].type: nothing -> "vanilla"',
    ]
    assert "another name" in lines[-1]


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [0, 1, 2]},
        {"search__points": 8},
        {"run__failures__stall_after": 60.0},
        {"budget__wall_hours": 2.0},
    ],
    ids=str,
)
def test_what_may_grow_grows_with_extend_only(paths: SweepPaths, change: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="run the same command with --extend"):
        check_unchanged(SPEC, changed(**change), paths, extend=False)
    found = check_unchanged(SPEC, changed(**change), paths, extend=True)
    assert [new for _, new in found.values()] == list(change.values())


@pytest.mark.parametrize("devices", ["cpu", [0, 1], ["GPU-1"]], ids=str)
@pytest.mark.parametrize("extend", [False, True])
def test_devices_are_free_at_every_start(paths: SweepPaths, devices: Any, extend: bool) -> None:
    assert check_unchanged(SPEC, changed(run__devices=devices, run__per_device=4), paths, extend=extend) == {}
    with pytest.raises(SpecError, match="differs") as error:
        check_unchanged(SPEC, changed(run__devices=devices, train__samples=200), paths, extend=extend)
    assert "run." not in str(error.value).splitlines()[1]


def test_where_trials_run_is_free_at_every_start(paths: SweepPaths) -> None:
    cluster = {"executor": "ray", "address": "head:6379", "agents": 3, "gpus_per_trial": 0.5, "storage": "shared"}
    where = {f"run__{key}": value for key, value in cluster.items()}
    moved = changed(run__grace=20.0, run__transfer_mbps=10.0, run__insecure=True, **where)
    assert check_unchanged(SPEC, moved, paths, extend=False) == {}


@pytest.mark.parametrize("extend", [False, True])
def test_the_number_of_threads_never_changes(paths: SweepPaths, extend: bool) -> None:
    with pytest.raises(SpecError, match=r"run\.threads: nothing -> 4"):
        check_unchanged(SPEC, changed(run__threads=4), paths, extend=extend)


def test_seeds_and_points_only_grow() -> None:
    assert not is_extension("seeds", [0, 1], [1, 2])
    assert not is_extension("search.points", 8, 4)
    assert is_extension("search.points", None, 4)
    assert not is_extension("running", 1, 2)
    assert not is_extension("search.sampler", "tpe", "qmc")


def test_differences_see_what_is_gone_and_what_is_new() -> None:
    assert differences({"a": {"b": 1}, "c": [1]}, {"c": [1, 2], "d": None, "e": 0}) == {
        "a.b": (1, None),
        "c": ([1], [1, 2]),
        "e": (None, 0),
    }


def test_provenance_names_commit_and_versions(repository: Path, tmp_path: Path) -> None:
    found = provenance(repository)
    assert len(found["git"]["commit"]) == 40
    assert {"saebench", "torch", "optuna", "mlflow"} <= set(found["versions"])
    assert git(tmp_path) is None


def test_a_lock_file_that_cannot_be_read_is_said(paths: SweepPaths) -> None:
    assert read_lock(paths) is None
    paths.root.mkdir(parents=True)
    paths.lock.write_text("[]")
    with pytest.raises(SpecError, match=r"lock.json: Input should be a valid dictionary"):
        read_lock(paths)
    paths.lock.write_text("{")
    with pytest.raises(SpecError, match=r"lock.json: is not JSON"):
        read_lock(paths)


@pytest.mark.parametrize(
    ("key", "old", "new", "moved"),
    [
        ("data.dataset.data_files", ["/a/t.csv", "/a/u.csv"], ["/b/c/t.csv", "/b/c/u.csv"], True),
        ("data.dataset.data_files", "/a/t.csv", "/b/t.csv", True),
        ("data.dataset.path", "/a/texts", "/b/texts", True),
        ("data.model", "/a/model", "/b/model", True),
        ("data.embeddings", "/a/x.npy", "/b/x.npy", True),
        ("data.labels", "/a/labels.json", "/b/labels.json", True),
        ("data.labels", "group", "kind", False),  # columns
        ("data.embeddings", "/a/x.npy", "/a/y.npy", False),
        ("data.dataset.data_files", "/a/t.csv", "/a/u.csv", False),
        ("data.dataset.data_files", ["/a/t.csv"], ["/a/t.csv", "/b/t.csv"], False),
        ("data.model", "org/model", "other/model", False),
        ("data.model", "org/model", "/a/model", False),
        ("data.dataset.data_files", None, "/a/t.csv", False),
        ("data.prompt", "/a/t", "/b/t", False),
    ],
)
def test_a_project_that_moved_has_the_same_files(key: str, old: Any, new: Any, moved: bool) -> None:
    assert is_moved(key, old, new) == moved
    assert not moved or not is_moved(key, old, "/elsewhere/other")


def test_trials_on_embeddings_that_moved_are_the_same() -> None:
    one = trial_config(0)

    def at(folder: str, name: str = "x.npy") -> TrialConfig:
        places = {"embeddings": f"{folder}/{name}", "texts": f"{folder}/t.txt", "labels": f"{folder}/l.json"}
        return one.model_copy(update={"data": one.data.model_copy(update=places)})

    assert same_trial(at("/a"), at("/b"))
    assert not same_trial(at("/a"), at("/a", "y.npy"))


def test_git_runs_nothing_that_a_folder_says(tmp_path: Path) -> None:
    """An unpacked folder's .git/config may name programs: for the index, for filters, for hooks, for pagers."""
    project, ran = tmp_path / "project", tmp_path / "ran"
    project.mkdir()
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho ran >> {ran}\n")
    program.chmod(0o755)
    run = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*run, "init", "-q"], check=True)
    (project / "a.txt").write_text("a")
    (project / ".gitattributes").write_text("*.txt filter=evil diff=evil\n")
    subprocess.run([*run, "add", "."], check=True)
    subprocess.run([*run, "commit", "-qm", "m"], check=True)
    keys = (
        "core.fsmonitor",
        "filter.evil.clean",
        "filter.evil.process",
        "core.pager",
        "diff.evil.command",
        "core.editor",
    )
    for key in keys:
        subprocess.run([*run, "config", key, str(program)], check=True)
    (project / "a.txt").write_text("b")
    found = git(project)
    assert found is not None
    assert set(found) == {"commit"}
    assert not ran.exists()
