"""Whole sweeps with real processes, Optuna and MLflow; most with a toy for the trial, one with the trial itself."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import sweep_toys
import yaml
from sweep_toys import spec

from saebench.errors import DataError, PreflightError, SpecError
from saebench.executors import Message
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.table import make_executor
from saebench.runs import events
from saebench.runs.board import Board, read_board
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import TrialState, read_config, read_state
from saebench.spec import parse_spec
from saebench.stores.progress import Progress
from saebench.sweep import SweepResult, run_sweep, spec_of
from saebench.sweep.given import given_spec
from saebench.sweep_config import RunConfig
from saebench.terminal.views import QuietView

TOY = "sweep_toys:train"


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers find the toys; MLflow's database lies in tmp_path."""
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here.parent), str(here)]))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sweep(tmp_path: Path, empty_database: Path) -> Callable[..., SweepResult]:
    """Run a sweep: with workers in processes, or (where processes are not the point) in threads."""
    shutil.copy(empty_database, tmp_path)

    def run(given: dict[str, Any] | None = None, *, threads: bool = False, **more: Any) -> SweepResult:
        more["overrides"] = [*more.get("overrides", ()), f"run.executor={'in_process' if threads else 'local'}"]
        return run_sweep(given or spec(), runs_dir=tmp_path / "runs", **{"quiet": True, "target": TOY, **more})

    return run


def histories(root: Path) -> dict[tuple[str, int], list[tuple[str, int, dict[str, float]]]]:
    """Every metric point of every trial, by stratum and seed (numbers follow the order of starts), without times."""
    return {
        identity(trial): [
            (e.type, e.samples, e.values) for e, _ in events.read(trial.events) if e.type in ("step", "eval", "done")
        ]
        for trial in SweepPaths(root).trials()
    }


def identity(trial: TrialPaths) -> tuple[str, int]:
    config = read_config(trial)
    assert config is not None
    return config.stratum, config.seed


def states(root: Path) -> list[str]:
    found = [read_state(trial) for trial in SweepPaths(root).trials()]
    return [state.state if state else "?" for state in found]


def mlflow_runs(tmp_path: Path, name: str = "toy") -> dict[str, tuple[str, int]]:
    """Trial (or 'sweep') -> status of its run and how many metric points it has, from the database itself."""
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as db:
        rows = db.execute(
            "select coalesce(t.value, 'sweep'), r.status,"
            " (select count(*) from metrics m where m.run_uuid = r.run_uuid)"
            " from runs r join tags s on s.run_uuid = r.run_uuid and s.key = 'saebench.sweep' and s.value = ?"
            " left join tags t on t.run_uuid = r.run_uuid and t.key = 'saebench.trial'",
            [name],
        ).fetchall()
    assert len({trial for trial, _, _ in rows}) == len(rows), "one run per trial"
    return {trial: (status, count) for trial, status, count in rows}


def points(root: Path, number: str) -> int:
    """Metric points of a trial; the last evaluation is also what `done` says."""
    read = events.read(SweepPaths(root).trial(int(number)).events)
    return len({(key, event.samples) for event, _ in read for key in event.values})


def test_a_sweep_from_end_to_end_and_again(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    result = sweep(threads=True)
    assert result.ok
    assert (result.exit_code, result.counts) == (0, {"complete": 4})
    assert states(result.root) == ["complete"] * 4
    assert list(result.frame()["state"]) == ["complete"] * 4
    lock = json.loads((result.root / "lock.json").read_text())
    assert lock["d_in"] == 384
    assert lock["tracking"] == {
        **lock["tracking"],
        "uri": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "run_id": result.run_id,
    }
    assert spec_of(SweepPaths(result.root)).plain() == lock["spec"]
    runs = mlflow_runs(tmp_path)
    assert {name: status for name, (status, _) in runs.items()} == {
        "sweep": "FINISHED",
        **{f"{n:04d}": "FINISHED" for n in range(4)},
    }
    assert runs["0002"][1] == points(result.root, "0002")
    assert not list(result.root.glob("scheduler.json"))

    before = {path: path.stat().st_mtime_ns for path in (result.root / "trials").rglob("*")}
    again = sweep(threads=True)
    assert again.ok
    assert {path: path.stat().st_mtime_ns for path in (result.root / "trials").rglob("*")} == before
    assert mlflow_runs(tmp_path) == runs


def test_a_worker_killed_by_kill_9_fails_with_its_reason_and_the_rest_finishes(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAULTS", json.dumps({"1:1:200": "kill"}))
    result = sweep(spec(run__failures={"retries": {"host_oom": 0}}))
    assert result.exit_code == 3
    assert states(result.root) == ["complete", "failed", "complete"], "a failed point gets no other seeds"
    assert result.failures == {1: "memory: ended by SIGKILL, as the kernel does when memory runs out"}
    assert mlflow_runs(tmp_path)["0001"][0] == "FAILED"


def test_a_worker_killed_by_kill_9_goes_on_from_its_checkpoint(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = histories(sweep(spec(name="undisturbed"), threads=True).root)
    monkeypatch.setenv("TOY_FAULTS", json.dumps({"1:1:250": "kill", "0:1:150": "crash", "0:2:150": "crash"}))
    result = sweep()
    assert result.ok
    assert histories(result.root) == undisturbed
    assert mlflow_runs(tmp_path)["0001"][0] == "FINISHED"


SCRIPT = """
import json, sys
from saebench import run_sweep
result = run_sweep(json.load(open(sys.argv[1])), runs_dir=sys.argv[2], target="sweep_toys:train")
sys.exit(result.exit_code)
"""
"""No main guard: a worker must never import this."""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """A script that runs a sweep, as a process."""

    def start(given: dict[str, Any], **environment: str) -> subprocess.Popen[str]:
        (tmp_path / "script.py").write_text(SCRIPT)
        (tmp_path / "spec.json").write_text(json.dumps(given))
        command = [sys.executable, "script.py", "spec.json", str(tmp_path / "runs")]
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            pytest.fail(f"it ended early: {process.communicate()[0]}")
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def evaluations(root: Path) -> int:
    return sum(e.type == "eval" for trial in SweepPaths(root).trials() for e, _ in events.read(trial.events))


def workers() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        command = process.info["cmdline"] or []
        ours = (process.info["environ"] or {}).get("PYTHONPATH", "").endswith(str(Path(__file__).parent))
        if "saebench.worker" in command and ours:
            found.append(process)
    return found


@pytest.mark.slow
def test_kill_9_of_the_scheduler_and_the_same_command_again(
    sweep: Callable[..., SweepResult], script: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """The histories are those of a sweep that nobody disturbed, and MLflow has every point once."""
    undisturbed = histories(sweep(spec(name="undisturbed"), threads=True).root)
    root = tmp_path / "runs" / "toy"
    process = script(spec(), TOY_STEP="0.03")
    wait_for(lambda: evaluations(root) >= 3, process)
    process.kill()
    process.communicate()
    again = sweep(threads=True)
    assert again.ok
    assert histories(root) == undisturbed
    assert mlflow_runs(tmp_path) == {
        "sweep": ("FINISHED", 0),
        **{f"{n:04d}": ("FINISHED", points(root, f"{n:04d}")) for n in range(4)},
    }
    wait_for(lambda: not workers())


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGUSR1", 75)])
def test_a_signal_ends_a_script_and_the_sweep_goes_on_later(
    sweep: Callable[..., SweepResult],
    script: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    sent: str,
    code: int,
) -> None:
    root = tmp_path / "runs" / "toy"
    process = script(spec(), TOY_STEP="0.05")
    wait_for(lambda: evaluations(root) >= 1, process)
    process.send_signal(getattr(signal, sent))
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert set(states(root)) <= {"interrupted", "complete"}
    assert "run the same command to resume" in output
    assert sweep(threads=True).ok
    assert states(root) == ["complete"] * 4


def test_a_project_that_was_moved_takes_its_database_along(
    empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's default is a file in the working directory, and lock.json holds its old place."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    first, second = tmp_path / "project", tmp_path / "renamed"
    first.mkdir()
    shutil.copy(empty_database, first)
    monkeypatch.chdir(first)
    begun = run_sweep(spec(seeds=[0]), target=TOY, quiet=True, runs_dir="runs")
    assert begun.ok
    first.rename(second)
    monkeypatch.chdir(second)
    again = run_sweep(spec(), target=TOY, quiet=True, runs_dir="runs", extend=True)
    assert again.ok
    assert again.run_id == begun.run_id
    assert again.tracking_uri == f"sqlite:///{second}/mlflow.db"
    assert not (first / "mlflow.db").exists()
    shutil.move(second / "mlflow.db", tmp_path)
    assert sorted(mlflow_runs(tmp_path)) == ["0000", "0001", "0002", "0003", "sweep"]


def test_a_disk_that_fills_up_ends_the_sweep_in_one_line_and_it_goes_on_later(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the first trial nothing can be written any more."""
    root, write = tmp_path / "runs" / "toy", TrialState.write

    def write_while_there_is_room(state: TrialState, paths: TrialPaths) -> None:
        if state.number == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(paths.state))
        write(state, paths)

    with monkeypatch.context() as full:
        full.setattr(TrialState, "write", write_while_there_is_room)
        ended = sweep(threads=True)
    assert ended.exit_code == 75
    assert ended.reason == f"{root}/trials/0002/state.json: No space left on device"
    assert "fix that, then run the same command to resume" in (root / "scheduler.log").read_text()
    assert sweep(threads=True).ok


def test_a_disk_that_is_full_from_the_start_leaves_nothing_behind(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as write() does, which knows no name

    monkeypatch.setattr("saebench.runs.lock.write_json", full)
    with pytest.raises(PreflightError, match=r"runs/toy: No space left on device$"):
        sweep(threads=True)
    assert not (tmp_path / "runs").exists()


def test_a_disk_that_is_full_for_the_runs_is_not_said_to_be_the_databases(
    sweep: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("saebench.tracking.book.write_text", full)
    with pytest.raises(PreflightError) as error:
        sweep(threads=True)
    assert str(error.value).endswith("/runs/toy: No space left on device")
    assert "tracking" not in str(error.value)


def test_a_working_directory_that_was_deleted_is_one_line(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(PreflightError, match="the working directory was deleted"):
        sweep()


def test_a_stop_while_the_texts_are_encoded_is_obeyed(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = SweepPaths(tmp_path / "runs" / "toy")

    def build(*arguments: Any) -> None:
        assert not paths.stop.exists(), "what was asked of an earlier scheduler"
        (call,) = [argument for argument in arguments if callable(argument)]
        call(Progress("encoding", 1, 10, 0.0))
        paths.stop.write_text("leave")
        call(Progress("encoding", 2, 10, 0.0))
        pytest.fail("nobody listened")

    monkeypatch.setattr("saebench.stores.cache.build", build)
    ended = sweep(spec(data__cache=True), threads=True)
    assert (ended.exit_code, ended.reason) == (75, "saebench stop")
    assert not paths.root.exists()


def test_a_changed_spec_is_refused_and_extend_takes_what_may_grow(sweep: Callable[..., SweepResult]) -> None:
    sweep(threads=True, given=spec(seeds=[0]))
    with pytest.raises(SpecError, match=r"train.samples: 400 -> 500"):
        sweep(threads=True, given=spec(seeds=[0], train__samples=500))
    with pytest.raises(SpecError, match="run the same command with --extend"):
        sweep(threads=True, given=spec(seeds=[0, 1]))
    result = sweep(threads=True, given=spec(seeds=[0, 1]), extend=True)
    assert result.counts == {"complete": 4}
    assert json.loads((result.root / "lock.json").read_text())["extended"][0]["changes"] == {"seeds": [[0], [0, 1]]}
    assert sweep(threads=True, given=spec(seeds=[0, 1])).ok


def test_failed_trials_are_tried_again_when_asked(
    sweep: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAULTS", json.dumps({"0:1:200": "diverge"}))
    assert sweep(threads=True).exit_code == 3
    monkeypatch.delenv("TOY_FAULTS")
    assert sweep(threads=True).exit_code == 3
    result = sweep(threads=True, retry_failed=True)
    assert result.ok
    assert result.counts == {"complete": 4}


def test_a_target_that_cannot_be_imported_stops_at_once(sweep: Callable[..., SweepResult]) -> None:
    result = sweep(target="sweep_toys:nothing")
    assert result.exit_code == 4
    assert "sweep_toys:nothing: no such function" in result.reason
    assert len(states(result.root)) <= 2


# --- preflight -------------------------------------------------------------------------------------------------------


def test_of_a_spec_from_a_pipe_the_text_is_kept() -> None:
    """A pipe can be read once; its copy in the sweep's directory was empty."""
    text = yaml.safe_dump(spec())
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    given = given_spec(f"/dev/fd/{reader}", ())
    os.close(reader)
    assert (given.text, given.spec.name, given.folder) == (text, "toy", Path.cwd())


def test_k_not_below_the_width_leaves_nothing_behind(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").unlink()
    with pytest.raises(SpecError, match="k"):
        sweep(spec(sae=[{"type": "topk", "k": 4000, "expansion_factor": 4}]))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_server_that_does_not_answer_leaves_nothing_behind(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"127\.0\.0\.1:9") as error:
        sweep(spec(tracking={"uri": "http://127.0.0.1:9"}))
    assert error.value.exit_code == 5
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_a_device_that_is_not_there_leaves_nothing_behind(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"run.devices: 99: no such GPU"):
        sweep(spec(run={"devices": [99]}))
    assert not (tmp_path / "runs").exists()


def test_a_column_that_is_not_there_leaves_nothing_behind(
    sweep: Callable[..., SweepResult], tmp_path: Path, glosses: Path
) -> None:
    data = {
        "model": "all-MiniLM-L6-v2",
        "dataset": {"path": "parquet", "data_files": str(glosses), "text_column": "body"},
    }
    with pytest.raises(DataError, match="body"):
        sweep(spec(data={**data, "num_examples": 1000}))
    assert not (tmp_path / "runs").exists()
    assert not workers()


def embeddings(monkeypatch: pytest.MonkeyPatch, num_train: int) -> SimpleNamespace:
    """What the cache is said to hold, without encoding a text; the test may change it."""
    entry = SimpleNamespace(
        num_train=num_train, num_validation=1, num_test=2, d_in=384, cache_key="0123", info={}, check=lambda _: None
    )
    monkeypatch.setattr("saebench.stores.cache.build", lambda *_: entry)
    monkeypatch.setattr("saebench.stores.cache.entry_folder", lambda *_: Path("embeddings", entry.cache_key))
    return entry


def test_texts_that_do_not_fill_a_batch_leave_nothing_behind(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = embeddings(monkeypatch, num_train=19)
    with pytest.raises(DataError, match=r"^train\.batch_size: 20: 19 training texts do not fill one batch$") as error:
        sweep(spec(data__cache=True, train__batch_size=[10, 20]), threads=True)
    assert error.value.exit_code == 5
    assert not (tmp_path / "runs").exists()
    entry.num_train = 20
    assert sweep(spec(data__cache=True, train__batch_size=[10, 20]), threads=True).ok


def test_other_embeddings_than_at_the_beginning_are_refused(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of texts was changed: trials of two corpora would stand in one table."""
    entry = embeddings(monkeypatch, num_train=100)
    given = spec(data__cache=True, seeds=[0])
    assert sweep(given, threads=True).ok
    assert {c.cache_key for t in SweepPaths(tmp_path / "runs" / "toy").trials() if (c := read_config(t))} == {"0123"}
    entry.cache_key = "4567"
    for extend in (False, True):
        seeds = [0, 1] if extend else [0]
        with pytest.raises(
            PreflightError, match="started with other texts or another model: embeddings 0123, now they are 4567"
        ):
            sweep(spec(data__cache=True, seeds=seeds), threads=True, extend=extend)
    entry.cache_key = "0123"
    assert sweep(spec(data__cache=True, seeds=[0, 1]), threads=True, extend=True).ok


def test_the_first_start_fixes_the_number_of_threads(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, the last bits of a sum depend on it: neither another machine nor other slots may change it."""
    root = tmp_path / "runs" / "toy"
    made = []
    real = make_executor
    monkeypatch.setattr(
        "saebench.sweep.life.make_executor", lambda run, *rest: made.append(run.threads) or real(run, *rest)
    )
    for cores, seeds in ((8, [0]), (2, [0, 1])):
        monkeypatch.setattr("saebench.devices.count_cores", lambda cores=cores: cores)
        overrides = ["run.per_device=4"]
        assert sweep(spec(seeds=seeds), extend=True, overrides=overrides).ok
        assert json.loads((root / "lock.json").read_text())["threads"] == 2
    assert made == [None, 2]


def test_devices_may_be_left_out_at_the_next_start(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    given = spec(seeds=[0])
    assert sweep(given, threads=True, overrides=["run.devices=cpu", "run.per_device=1"]).ok
    lock = (tmp_path / "runs" / "toy" / "lock.json").read_bytes()
    assert sweep(given, threads=True).ok
    assert (tmp_path / "runs" / "toy" / "lock.json").read_bytes() == lock


# --- where trials run, and what the directory meets -----------------------------------------------------------------


def test_an_executor_of_ones_own_runs_the_trials_and_is_closed(
    sweep: Callable[..., SweepResult], tmp_path: Path
) -> None:
    closed: list[bool] = []

    class Own(InProcessExecutor):
        def close(self) -> None:
            closed.append(True)
            super().close()

    own = Own(RunConfig(), tmp_path, TOY)
    assert sweep(executor=own).counts == {"complete": 4}
    assert closed


def test_in_process_trials_run_in_this_very_process(sweep: Callable[..., SweepResult]) -> None:
    result = sweep(threads=True)
    starts = [
        e.info["pid"] for t in SweepPaths(result.root).trials() for e, _ in events.read(t.events) if e.type == "start"
    ]
    assert set(starts) == {os.getpid()}
    with pytest.raises(PreflightError, match=r"run.devices: \(0,\): run.executor: in_process trains on the CPU"):
        sweep(spec(name="gpu", run={"devices": [0]}), threads=True)


def test_a_directory_renamed_while_the_sweep_runs_is_one_line_and_75(
    sweep: Callable[..., SweepResult], tmp_path: Path
) -> None:
    """Nothing is written where it was; resumed where it is, the histories are those of a sweep that nobody moved."""
    undisturbed = histories(sweep(spec(name="undisturbed"), threads=True).root)
    root = tmp_path / "runs" / "toy"

    class Moving(InProcessExecutor):
        def poll(self, timeout: float) -> list[Message]:
            found = super().poll(timeout)
            if root.exists() and evaluations(root) >= 2:
                (tmp_path / "runs").rename(tmp_path / "elsewhere")
            return found

    ended = sweep(executor=Moving(RunConfig(), tmp_path, TOY))
    assert (ended.exit_code, ended.reason) == (75, f"{root}: was moved or deleted while the sweep ran")
    assert not [path for path in root.rglob("*") if path.name != "checkpoint" and path.is_file()]
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    (tmp_path / "elsewhere").rename(tmp_path / "runs")
    assert sweep(threads=True).ok
    assert histories(root) == undisturbed


@pytest.mark.parametrize(
    "error", ["OSError(28, 'No space left on device')", "RuntimeError('I/O error: File too large (os error 28)')"]
)
def test_a_worker_that_finds_no_room_stops_the_sweep_and_costs_no_attempt(
    sweep: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """safetensors' error is no OSError; both are the disk's, not the trial's."""
    monkeypatch.setattr(sweep_toys, "evaluation", lambda *_: (_ for _ in ()).throw(eval(error)))
    ended = sweep(threads=True)
    assert ended.exit_code == 75
    assert re.match(rf"{re.escape(str(ended.root))}: no space left for trial 000[01]: ", ended.reason), "two ran"
    assert set(states(ended.root)) == {"interrupted"}
    assert all(len(s.attempts) <= 1 for t in SweepPaths(ended.root).trials() if (s := read_state(t)))
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{ended.root.parents[1] / 'mlflow.db'}")
    assert sweep(threads=True).counts == {"complete": 4}


@pytest.mark.filterwarnings("ignore:Query string argument")
def test_a_secret_of_the_spec_is_in_no_file_of_the_sweep(
    sweep: Callable[..., SweepResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address is the database's; what would be a password is a parameter that SQLite ignores."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}?password=hunter22"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    result = sweep(spec(tracking={"uri": uri}, seeds=[0]), threads=True)
    assert result.ok
    for path in result.root.rglob("*"):
        assert not path.is_file() or b"hunter22" not in path.read_bytes(), path
    assert "password=***" in (result.root / "lock.json").read_text()
    again = sweep(spec(tracking={"uri": uri}), threads=True, extend=True)
    assert again.ok, "the spec with its secret is the spec that was masked"
    with pytest.raises(PreflightError, match=r"tracking.uri: .*: its secret is not stored; set MLFLOW_TRACKING_URI"):
        sweep(spec_of(SweepPaths(result.root)), threads=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert sweep(spec_of(SweepPaths(result.root)), threads=True).ok


def test_the_sweep_and_status_foresee_the_same(sweep: Callable[..., SweepResult], tmp_path: Path) -> None:
    """In mid-run: trials that are left and the time they take, from the scheduler's board and from the files."""
    from saebench.forecast import trials_left
    from saebench.plan import make_plan

    given = spec(
        seeds=[0, 1, 2], train__lr={"low": 1e-3, "high": 1e-1, "log": True}, search={"sampler": "qmc", "points": 4}
    )
    plan = make_plan(parse_spec(given), 384)
    seen: list[tuple[int, float | None, int, float | None]] = []

    class Watching(QuietView):
        def show(self, board: Board) -> None:
            if board.running and board.ended in (3, 9):
                now = time.time()
                files = read_board(
                    SweepPaths(tmp_path / "runs" / "toy"), board.started, left=lambda s: trials_left(plan, s)
                )
                if files.counts == +board.counts and files.running.keys() == board.running.keys():
                    seen.append((board.left, board.eta(now), files.left, files.eta(now)))

    sweep(given, threads=True, view=Watching())
    assert seen
    for ours, our_eta, theirs, their_eta in seen:
        assert ours == theirs
        assert our_eta == pytest.approx(their_eta, rel=0.35)


def test_a_sweep_at_its_end_writes_its_verdict_to_mlflow(
    sweep: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    from saebench import report

    read, load = [], report.load
    monkeypatch.setattr(report, "load", lambda root: read.append(root) or load(root))
    monkeypatch.setattr("saebench.sweep.life.TARGET", TOY)
    monkeypatch.setattr("saebench.sweep.life.SweepRun._floors", lambda *_: None)
    result = sweep(threads=True)
    assert result.report.name == result.name
    assert read == [result.root], "once, for MLflow and for the last lines"
    client = MlflowClient(tracking_uri=result.tracking_uri)
    run = client.get_run(result.run_id)
    assert "Whole report: artifacts, report/report.html" in run.data.tags["mlflow.note.content"]
    assert any(name.startswith("best/fvu_") for name in run.data.metrics)
    files = {item.path for item in client.list_artifacts(result.run_id, "report")}
    assert files == {"report/report.html", "report/verdict.md"}
    assert run.info.status == "FINISHED"


def test_a_verdict_that_mlflow_refuses_does_not_fail_the_sweep(
    sweep: Callable[..., SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("413 too large\nmore")

    monkeypatch.setattr("saebench.sweep.life.TARGET", TOY)
    monkeypatch.setattr("saebench.sweep.life.SweepRun._floors", lambda *_: None)
    monkeypatch.setattr("saebench.report.publish.publish", refuse)
    result = sweep(threads=True)
    assert result.ok
    said = SweepPaths(result.root).log.read_text()
    assert f"the verdict is not in MLflow (413 too large); saebench report {result.name} --log writes it" in said
