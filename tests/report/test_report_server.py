"""A report of what is on a real `mlflow server`: the same as of the database, whatever the size of its answers."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import trial_config
from mlflow_server import Server
from report import sweep_data
from report.sweep_data import Store
from safetensors.numpy import save_file

from saebench.report import load, trials, wire
from saebench.report.details import evaluations, histories
from saebench.report.read import read
from saebench.report.sources import find
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sweep_data.make_store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def served(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The store's sweep behind http."""
    server = Server(tmp_path_factory.mktemp("server"), store.uri)
    server.start()
    yield server.uri
    server.kill()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Endpoints of all requests for runs and histories."""
    endpoints: list[str] = []
    ask = wire._ask

    def noted(uri: str, endpoint: str, method: str, **what: Any) -> dict[str, Any]:
        endpoints.append(endpoint)
        return ask(uri, endpoint, method, **what)

    monkeypatch.setattr(wire, "_ask", noted)
    return endpoints


def test_runs_over_http_are_those_of_the_database_page_by_page(
    store: Store, served: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire, "_PAGE", 7)
    frame = trials("demo", runs_dir=tmp_path, tracking_uri=served)
    pd.testing.assert_frame_equal(frame, trials("demo", runs_dir=store.runs))
    pages = -(-len(store.trials) // 7)
    assert asked == [wire._SEARCH] * (pages + 1), "and one for the newest: all of these began at the same moment"


def test_spans_of_time_together_are_all_times_and_no_time_is_in_two() -> None:
    for begin, end in ((100, 101), (100, 107), (100, 100_000), (0, 3)):
        times = [*range(begin, min(end, begin + 300) + 1), end, end + 50]
        spans = [span.replace("attributes.start_time", "t") for span in wire._spans(begin, end)]
        assert all(sum(eval(span, {"t": t}) for span in spans) == 1 for t in times)
    assert wire._spans(100, 100) == []


def test_a_long_sweep_is_asked_for_in_spans_of_time(
    store: Store, served: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven times, some of them equal, one in a page of its own."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.create_experiment("long", artifact_location=tmp_path.as_uri())
    parent = client.create_run(experiment, tags={"saebench.kind": "sweep", "saebench.sweep": "long"}).info.run_id
    for number in range(24):
        tags = {"saebench.kind": "trial", "mlflow.parentRunId": parent, "saebench.trial": f"{number:04d}"}
        client.create_run(experiment, start_time=1000 + (number // 3) ** 4, tags=tags)
    monkeypatch.setattr(wire, "_PAGE", 4)
    frame = trials("long", runs_dir=tmp_path, tracking_uri=served)
    assert frame["trial"].tolist() == list(range(24))
    pd.testing.assert_frame_equal(frame, trials("long", runs_dir=tmp_path, tracking_uri=store.uri))
    assert len(asked) > 2 + wire._SPANS


def test_numbers_that_json_does_not_have_arrive_as_they_are(served: str, store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    run = next(iter(trials("demo", runs_dir=tmp_path, tracking_uri=served)["run_id"]))
    client.log_metric(run, "eval/odd", float("nan"), step=1)
    client.log_metric(run, "eval/huge", float("inf"), step=1)
    frames = [trials("demo", runs_dir=tmp_path, tracking_uri=uri) for uri in (served, store.uri)]
    pd.testing.assert_frame_equal(*frames)
    row = frames[0].set_index("run_id").loc[run]
    assert np.isnan(row["eval/odd"])
    assert row["eval/huge"] == np.inf
    record = read(find(["demo"], tmp_path, served))
    assert histories(record, [("demo", run)], "eval/huge") == {run: [(1, np.inf)]}


@pytest.mark.parametrize(("group", "most"), [(100, 25_000), (7, 25_000), (100, 50)])
def test_a_hundred_histories_come_in_one_request_and_a_cut_answer_is_asked_for_again(
    store: Store, served: str, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, group: int, most: int
) -> None:
    monkeypatch.setattr(wire, "_GROUP", group)
    monkeypatch.setattr(wire, "_MOST", most)
    there, here = (load("demo", runs_dir=tmp_path, tracking_uri=uri) for uri in (served, store.uri))
    pd.testing.assert_frame_equal(there.curves, here.curves)
    requests = asked.count(wire._BULK)
    assert len(there.curves) == sum(len(trial["curve"]) for trial in store.trials if trial["metrics"])
    assert requests == -(-len(store.trials) // group) if most == 25_000 else requests > 8


@pytest.mark.parametrize("broken", ["the question is unknown", "a history is longer than an answer"])
def test_what_a_server_does_not_tell_at_once_is_asked_run_by_run(
    store: Store, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "the question is unknown":
        monkeypatch.setattr(wire, "_BULK", "/ajax-api/2.0/mlflow/metrics/no-such-question")
    else:
        monkeypatch.setattr(wire, "_MOST", 1)
    there, here = (load("demo", runs_dir=tmp_path, tracking_uri=uri) for uri in (served, store.uri))
    pd.testing.assert_frame_equal(there.curves, here.curves)


def test_a_sweep_on_a_server_is_reported_without_its_directory(
    served: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Objective, direction, evaluations: everything that the report takes from the directory where there is one."""
    sweep = tracked(tmp_path / "runs", served)
    shutil.move(sweep.root.parent, tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    record = read(find(["larger"], tmp_path / "runs", served))
    assert (record.objective, record.maximize) == ("eval/cosine", True)
    assert record.frame["eval/cosine"].tolist() == [0.1, 0.2, 0.3]
    found = evaluations(record, record.frame)
    assert [float(found[run]["squared_error"][0]) for run in record.frame["run_id"]] == [0.0, 1.0, 2.0]
    assert dict(os.environ) == before
    capfd.readouterr()
    report = load("larger", runs_dir=tmp_path / "runs", tracking_uri=served)
    assert report.table("best").rows()[0]["best_trial"] == 2
    assert capfd.readouterr().err == "", "no progress bars of MLflow's"


def tracked(runs: Path, uri: str) -> SweepPaths:
    """A sweep whose objective is better when it is larger, logged over http."""
    paths = SweepPaths(runs / "larger")
    for number in range(3):
        config = trial_config(number).model_copy(update={"sweep": "larger"})
        trial = paths.trial(number)
        write_json(trial.config, config.model_dump(mode="json"))
        log = EventLog(trial.events)
        log.append(Event("done", 40, {"eval/cosine": (number + 1) / 10, "eval/fvu": 0.5, "eval/l0": 4.0}))
        log.close()
        save_file({"squared_error": np.full(3, number, np.float32)}, trial.evaluation)
        TrialState(number, config.stratum, config.point, 0, 40, state="complete").write(trial)
    made = Tracker(paths, TrackingConfig(uri=uri), "larger", interval=0.02, share=1.0)
    made.start({"spec": {"search": {"objective": "eval/cosine", "direction": "maximize"}}})
    assert made.close() == (0, None)
    return paths
