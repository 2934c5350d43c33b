"""MLflow's record and the sweep's directory after somebody touched them: nothing doubled, nothing leaked."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fakes import trial_config

from saebench.errors import PreflightError, UserError
from saebench.report.details import evaluations, histories
from saebench.report.read import read
from saebench.report.sources import find
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker, server
from saebench.tracking.address import moved_database, sqlite_uri

PW = "Xq7secret"


def make_sweep(root: Path, trials: int = 3) -> SweepPaths:
    """A sweep whose trials have all ended, on disk."""
    paths = SweepPaths(root)
    for number in range(trials):
        trial = paths.trial(number)
        config = trial_config(number, 0)
        write_json(trial.config, config.model_dump(mode="json"))
        log = EventLog(trial.events)
        log.append(Event("done", 40, {"eval/fvu": 0.5, "eval/l0": 4.0}))
        log.close()
        trial.log.write_text("hello\n")
        trial.sae.mkdir()
        (trial.sae / "sae.json").write_text("{}")
        (trial.sae / "sae.safetensors").write_bytes(b"weights")
        TrialState(number, "s", "p", 0, 40, state="complete").write(trial)
    paths.spec.write_text("name: toy\n")
    write_json(paths.lock, {"name": "toy", "spec": {}})
    return paths


def run(paths: SweepPaths, uri: str, info: dict[str, Any] | None = None) -> Tracker:
    """A scheduler that finds everything done; lock.json then names the runs."""
    made = Tracker(paths, TrackingConfig(uri=uri), "toy", interval=0.02, share=1.0)
    made.start(info or {"spec": {}})
    assert made.close() == (0, None)
    where = {"uri": uri, "experiment_id": made.experiment_id, "run_id": made.run_id}
    write_json(paths.lock, {"name": "toy", "spec": {}, "tracking": where})
    return made


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Path:
    (tmp_path / "project").mkdir()
    shutil.copy(empty_database, tmp_path / "project" / "mlflow.db")
    return tmp_path / "project"


def all_runs(uri: str) -> list[Any]:
    client = server.connect(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(ids, max_results=1000))


@pytest.mark.parametrize("damage", [None, "", "{", '{"uri": 5, "trials": {}}', '{"uri": "x", "trials": {"0": []}}',
                                    '{"uri": "x", "run_id": 7, "trials": {}}', "[" * 100_000])  # fmt: skip
def test_a_lost_or_damaged_tracking_json_adopts_the_runs_there_are(project: Path, damage: str | None) -> None:
    paths, uri = make_sweep(project / "runs" / "toy"), sqlite_uri(project / "mlflow.db")
    first = run(paths, uri)
    before = {r.info.run_id for r in all_runs(uri)}
    assert len(before) == 4
    paths.tracking.unlink()
    if damage is not None:
        paths.tracking.write_text(damage)
    again = run(paths, uri, json.loads(paths.lock.read_text()))
    assert again.run_id == first.run_id
    assert {r.info.run_id for r in all_runs(uri)} == before
    assert {r.info.status for r in all_runs(uri)} == {"FINISHED"}


def test_only_the_sae_s_own_files_are_copied_and_no_link_is_followed(project: Path, tmp_path: Path) -> None:
    paths, uri = make_sweep(project / "runs" / "toy", 3), sqlite_uri(project / "mlflow.db")
    private = tmp_path / "id_rsa"
    private.write_text("private")
    left = paths.trial(0).sae
    (left / ".sae.safetensors.77.tmp").write_bytes(b"half")
    (left / "notes").symlink_to(private)
    (left / "folder").mkdir()
    os.mkfifo(left / "pipe")
    (paths.trial(1).sae / "sae.json").unlink()
    (paths.trial(1).sae / "sae.json").symlink_to(private)
    paths.trial(2).log.unlink()
    paths.trial(2).log.symlink_to(private)
    made = run(paths, uri)
    client = server.connect(uri)
    ids = {number: sent.run_id for number, sent in made._book.trials.items()}
    assert [i.path for i in client.list_artifacts(ids[0], "sae")] == ["sae/sae.json", "sae/sae.safetensors"]
    assert [i.path for i in client.list_artifacts(ids[1])] == ["config.json", "log.txt"]
    assert "log.txt" not in [i.path for i in client.list_artifacts(ids[2])]
    assert not any(b"private" in file.read_bytes() for file in (project / "mlartifacts").rglob("*") if file.is_file())


def test_no_secret_reaches_the_record(project: Path) -> None:
    """Neither the database nor an artifact nor a file of the sweep's directory that tracking writes."""
    paths, uri = make_sweep(project / "runs" / "toy", 1), sqlite_uri(project / "mlflow.db")
    address = f"https://me:a@{PW}@host/a.csv?token={PW}"
    config = trial_config(0, 0)
    dataset = config.data.dataset.model_copy(update={"data_files": address})
    config = config.model_copy(update={"data": config.data.model_copy(update={"dataset": dataset})})
    write_json(paths.trial(0).config, config.model_dump(mode="json"))
    paths.trial(0).log.write_text(f"no answer from {address}\n")
    paths.spec.write_text(f"name: toy\ntracking: {{uri: 'http://me:a@{PW}@host'}}\n")
    run(paths, uri, {"spec": {"data": config.data.model_dump(mode="json")}, "description": f"see {address}"})
    written = [project / "mlflow.db", paths.tracking, *(project / "mlartifacts").rglob("*")]
    assert len([file for file in written if file.is_file()]) > 5
    assert [file for file in written if file.is_file() and PW.encode() in file.read_bytes()] == []


def test_a_moved_project_is_reported_and_its_artifacts_follow(project: Path, tmp_path: Path) -> None:
    paths, old = make_sweep(project / "runs" / "toy", 2), sqlite_uri(project / "mlflow.db")
    made = run(paths, old)
    server.connect(old)
    moved = tmp_path / "new%20place"
    project.rename(moved)
    source = find([str(moved / "runs" / "toy")])[0]
    assert source.uri == sqlite_uri(moved / "mlflow.db")
    assert len(read([source]).frame) == 2
    root = moved / "runs" / "toy"
    assert moved_database(project / "mlflow.db", root, made.run_id) == moved / "mlflow.db"
    assert moved_database(project / "mlflow.db", root, "another") is None
    paths = SweepPaths(root)
    lock = json.loads(paths.lock.read_text())
    TrialState(1, "s", "p", 0, 40, state="interrupted").write(paths.trial(1))
    run(paths, source.uri, lock)
    places = {r.info.artifact_uri for r in all_runs(source.uri)}
    assert all(place.startswith(moved.as_uri()) for place in places)
    assert not project.exists()


def test_what_was_deleted_in_mlflow_is_named(project: Path) -> None:
    paths, uri = make_sweep(project / "runs" / "toy", 3), sqlite_uri(project / "mlflow.db")
    made = run(paths, uri)
    client = server.connect(uri)
    gone = made._book.trials[1].run_id
    client.delete_run(gone)
    record = read(find([str(paths.root)]))
    assert len(record.frame) == 2
    assert (
        f"toy: 1 trial (1) left out: deleted in MLflow; to restore: mlflow runs restore --run-id {gone}" in record.notes
    )
    client.delete_run(made.run_id)
    assert f"mlflow runs restore --run-id {made.run_id}" in read(find([str(paths.root)])).notes[0]


def test_a_deleted_experiment_is_reported_from_a_whole_directory(project: Path) -> None:
    """Same rows, same curves, and a note; without the directory, or with a hole in it, one line."""
    paths, uri = make_sweep(project / "runs" / "toy", 3), sqlite_uri(project / "mlflow.db")
    for number in range(3):
        log = EventLog(paths.trial(number).events)
        log.append(Event("eval", 20, {"eval/fvu": 0.7, "eval/l0": float("nan")}))
        log.close()
    made = run(paths, uri)
    before, client = read(find([str(paths.root)])), server.connect(uri)
    runs = [("toy", str(run_id)) for run_id in before.frame["run_id"]]
    curves = histories(before, runs, "eval/fvu")
    client.delete_experiment(made.experiment_id)
    after = read(find([str(paths.root)]))
    seconds = ["duration_s"]  # without attempts in state.json: between the first and the last event, or the run's own
    pd.testing.assert_frame_equal(after.frame.drop(columns=seconds), before.frame.drop(columns=seconds))
    assert histories(after, runs, "eval/fvu") == curves
    assert len(evaluations(after, after.frame)) == 0
    advice = rf"experiment 'toy' is deleted.*mlflow experiments restore -x {made.experiment_id}"
    assert re.search(rf"{advice} \(this report was made from {paths.root}\)", after.notes[0])
    paths.trial(1).state.unlink()
    with pytest.raises(UserError, match=advice):
        read(find([str(paths.root)]))
    with pytest.raises(UserError, match=advice):
        read([replace(find([str(paths.root)])[0], paths=None)])


def test_a_locked_database_is_one_line_without_sql(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = sqlite_uri(project / "mlflow.db")
    monkeypatch.setattr(server, "use_log", lambda _: None)
    locked = sqlite3.OperationalError("database is locked")

    def refuse(**_: Any) -> None:
        from sqlalchemy.exc import OperationalError

        raise OperationalError("SELECT x FROM runs\nWHERE y", {}, locked)

    monkeypatch.setattr("mlflow.MlflowClient", refuse)
    with pytest.raises(PreflightError) as error:
        server.connect(uri)
    assert str(error.value).endswith("another process is writing to it; try again when it has finished")
    assert "SELECT" not in str(error.value)


def test_a_first_start_that_fails_half_way_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk MLflow creates some of its tables; on those every later start died."""

    class FillsTheDisk:
        def __init__(self, tracking_uri: str) -> None:
            self.file = tracking_uri.removeprefix("sqlite:///")

        def search_experiments(self, max_results: int) -> None:  # noqa: ARG002 - what it is called with
            with closing(sqlite3.connect(self.file)) as half:
                half.execute("CREATE TABLE spans (x)")
            raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr("mlflow.MlflowClient", FillsTheDisk)
    with pytest.raises(PreflightError, match="no room left on the disk"):
        server.connect(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []
