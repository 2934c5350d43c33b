"""Reading sweeps: names, servers, and everything that can be wrong with them."""

from __future__ import annotations

import json
import math
import shutil
import socket
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import sweep_data
from sweep_data import SAMPLES, Store, frame_of, simulate, with_state
from waiting import SOON

from saebench.errors import PreflightError, UserError
from saebench.report import load, trials
from saebench.report.details import evaluations, histories
from saebench.report.read import read
from saebench.report.rows import row_of
from saebench.report.sources import find
from saebench.tracking import reachable


@pytest.fixture
def runs(store: Store, tmp_path: Path) -> Path:
    """The session's sweep in a folder of this test's own, its files left out."""
    shutil.copytree(store.runs, tmp_path / "runs", ignore=shutil.ignore_patterns("trials"))
    return tmp_path / "runs"


def test_a_row_per_trial_with_parameters_and_last_metrics(store: Store) -> None:
    frame, expected = trials("demo", runs_dir=store.runs), frame_of(store.trials)
    same = [key for key in expected.columns if key not in ("run_id", "duration_s")]
    pd.testing.assert_frame_equal(frame[same], expected[same], check_dtype=False)
    assert frame["run_id"].is_unique
    assert list(frame.columns[:4]) == ["sweep", "trial", "state", "reason"]
    assert {"k", "target_l0", "lr", "dict_size", "eval/fvu", "eval/l0", "duration_s"} <= set(frame.columns)
    pruned = frame[frame["state"] == "pruned"].iloc[0]
    assert pruned["verdict"]["threshold"] == 0.52
    assert frame["failure"].eq("").all()


def test_a_sweep_is_named_by_name_by_directory_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = trials("demo", runs_dir=store.runs)
    assert trials(store.runs / "demo").equals(by_name)
    monkeypatch.setenv("SAEBENCH_RUNS", str(store.runs))
    assert trials().equals(by_name)


def test_the_newest_sweep_is_the_one_that_changed_last(runs: Path) -> None:
    shutil.copytree(runs / "demo", runs / "older")
    (runs / "older" / "lock.json").write_text(json.dumps({"name": "older"}))
    import os

    for file in (runs / "older").iterdir():
        os.utime(file, (1, 1))
    assert find([], runs)[0].paths.root == runs / "demo"


def test_a_sweep_can_be_read_from_a_server_without_its_directory(store: Store, tmp_path: Path) -> None:
    assert len(trials("demo", runs_dir=tmp_path, tracking_uri=store.uri)) == len(store.trials)
    assert len(trials(runs_dir=tmp_path, tracking_uri=store.uri)) == len(store.trials)
    with pytest.raises(UserError, match=r"nosuch: no such sweep on sqlite.*; there are: demo$"):
        trials("nosuch", runs_dir=tmp_path, tracking_uri=store.uri)


def test_a_server_from_the_environment_is_asked_for_sweeps_that_are_not_here(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert len(trials("demo", runs_dir=tmp_path)) == len(store.trials)


def test_an_unknown_name_lists_the_sweeps_there_are(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"typo: no such sweep in .*runs; there are: demo$"):
        trials("typo", runs_dir=runs)
    with pytest.raises(UserError, match=r"there are no sweeps$"):
        trials("typo", runs_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="no sweeps here"):
        trials(runs_dir=tmp_path / "nowhere")


def test_a_directory_that_never_reached_mlflow_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "spec.yaml").write_text("name: new")
    with pytest.raises(UserError, match="has not started yet"):
        trials("new", runs_dir=tmp_path)


def test_the_lock_alone_is_enough_to_find_the_run(store: Store, runs: Path) -> None:
    (runs / "demo" / "tracking.json").unlink()
    assert len(trials("demo", runs_dir=runs)) == len(store.trials)


# --- what is wrong in the store --------------------------------------------------------------------------------------


def logged(tmp_path: Path, store: Store, some, **options) -> Path:
    """A folder of runs with one sweep more in the session's store, under a name of this test's own."""
    name = f"s{abs(hash(tmp_path)) % 10**8}"
    for trial in some:
        trial["sweep"] = name
    sweep_data.log_sweep(store.uri, some, tmp_path / "runs", tmp_path / "artifacts", **options)
    return tmp_path / "runs"


def small():
    return simulate(levels=(16,), widths=(1536,), points=1, seeds=(0, 1))


def test_an_empty_sweep_is_reported_as_one(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store.uri)
    experiment = client.create_experiment("nothing in it", artifact_location=tmp_path.as_uri())
    parent = client.create_run(experiment, tags={"saebench.kind": "sweep", "saebench.sweep": "void"})
    sweep_data.write_directory(tmp_path / "runs" / "void", store.uri, experiment, parent.info.run_id)
    report = load("void", runs_dir=tmp_path / "runs")
    assert "void: no trials yet" in report.record.notes
    assert report.sentences == ["No trials: nothing to compare."]


def test_a_sweep_that_was_left_reports_what_it_has(store: Store, tmp_path: Path) -> None:
    some = small()
    some[1] = with_state(some[1], "running")
    some[2] = with_state(some[2], "interrupted")
    runs = logged(tmp_path, store, some, parent_status="RUNNING")
    report = load(runs_dir=runs)
    assert len(report.frame) == 4
    assert sorted(report.frame["state"]) == ["complete", "complete", "interrupted", "running"]
    (note,) = report.record.notes
    assert "2 trials unfinished; run the same command to resume it" in note


def test_a_sweep_that_runs_is_said_to_run(store: Store, tmp_path: Path) -> None:
    from saebench.runs.holder import this_process

    runs = logged(tmp_path, store, small(), parent_status="RUNNING")
    (next(runs.iterdir()) / "scheduler.json").write_text(json.dumps({**this_process(), "since": 0.0, "at": "now"}))
    assert "still running" in load(runs_dir=runs).record.notes[0]


def test_runs_of_others_are_left_out_and_counted(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    runs = logged(tmp_path, store, small())
    source = find([], runs)[0]
    client = MlflowClient(tracking_uri=store.uri)
    client.create_run(source.experiment_id, tags={"mlflow.parentRunId": source.run_id})  # under ours, not ours
    client.create_run(source.experiment_id, tags={"owner": "another tool"})  # beside ours
    report = load(runs_dir=runs)
    assert len(report.frame) == 4
    assert any("1 runs under this sweep are not saebench's" in note for note in report.record.notes)


def test_a_trial_that_has_two_runs_counts_once_the_one_that_got_furthest(store: Store, tmp_path: Path) -> None:
    some = small()
    twice = [*some, with_state(dict(some[0]), "running")]
    report = load(runs_dir=logged(tmp_path, store, twice))
    assert len(report.frame) == 4
    assert report.frame["state"].eq("complete").all()
    assert any("1 runs repeat a trial's number" in note for note in report.record.notes)


def test_missing_and_nan_metrics_are_counted_and_compared_nowhere(store: Store, tmp_path: Path) -> None:
    some = small()
    some[0]["metrics"]["eval/fvu"] = some[0]["curve"][SAMPLES] = math.nan
    del some[1]["metrics"]["eval/l0"]
    report = load(runs_dir=logged(tmp_path, store, some))
    assert "1 of 4 complete trials have no finite eval/fvu: they are left out of comparisons" in report.record.notes
    assert "1 of 4 complete trials have no finite eval/l0: they are left out of comparisons" in report.record.notes
    assert "not compared" in report.sentences[0] or "do not decide" in report.sentences[0]


def test_a_value_that_the_tracker_refused_is_not_replaced_by_an_earlier_one(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    runs = logged(tmp_path, store, small())
    run = load(runs_dir=runs).frame["run_id"][0]
    MlflowClient(tracking_uri=store.uri).set_tag(run, "saebench.nonfinite", json.dumps({"eval/fvu": SAMPLES}))
    frame = load(runs_dir=runs).frame
    assert frame["eval/fvu"].isna().tolist() == [True, False, False, False]


def test_infinity_is_infinity_again() -> None:
    trial = small()[0]
    trial["metrics"]["eval/fvu"] = 1.7976931348623157e308
    assert frame_of([trial])["eval/fvu"][0] == math.inf


def test_deleted_files_are_noted_and_the_rest_of_the_report_still_comes(store: Store, tmp_path: Path) -> None:
    runs = logged(tmp_path, store, small())
    shutil.rmtree(tmp_path / "artifacts")
    shutil.rmtree(next(runs.iterdir()) / "trials")
    report = load(runs_dir=runs)
    assert len(report.comparisons) == 1
    assert report.comparisons[0].texts == 0
    assert any("evaluation.safetensors of 4 of 4 trials is missing" in note for note in report.record.notes)


def test_a_broken_file_is_a_missing_one_unless_mlflow_has_it(store: Store, tmp_path: Path) -> None:
    runs = logged(tmp_path, store, small())
    file = next(runs.glob("*/trials/0000/evaluation.safetensors"))
    file.write_bytes(file.read_bytes()[:40])
    report = load(runs_dir=runs)
    assert len(report.evaluations) == 4
    shutil.rmtree(tmp_path / "artifacts")
    report = load(runs_dir=runs)
    assert len(report.evaluations) == 3
    assert any("1 of 4 trials" in note for note in report.record.notes)


def test_evaluations_come_from_mlflow_where_there_is_no_directory(runs: Path) -> None:
    record = read(find(["demo"], runs))  # a copy without trials/
    some = record.frame[record.frame["state"] == "complete"].head(3)
    found = evaluations(record, some)
    assert set(found) == set(some["run_id"])
    assert {"squared_error", "l0", "firing"} <= found[some["run_id"].iloc[0]].keys()


def test_learning_curves_are_the_recorded_points(store: Store) -> None:
    record = read(find(["demo"], store.runs))
    row = record.frame.iloc[0]
    found = histories(record, [("demo", row["run_id"])], "eval/fvu")
    assert found == {row["run_id"]: sorted(store.trials[0]["curve"].items())}


def test_two_sweeps_make_one_report(store: Store, tmp_path: Path) -> None:
    some = simulate(arms={"gated": 1.1}, points=1)
    runs = logged(tmp_path, store, some)
    shutil.copytree(store.runs / "demo", runs / "demo")
    report = load("demo", some[0]["sweep"], runs_dir=runs)
    assert len(report.comparisons) == 6  # four arms
    assert any(c.b == "gated" for c in report.comparisons)


# --- servers that are not there --------------------------------------------------------------------------------------


def redirected(runs: Path, uri: str) -> Path:
    record = runs / "demo" / "tracking.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "uri": uri}))
    return runs


def test_a_server_that_refuses_is_one_line(runs: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    with pytest.raises(PreflightError, match=rf"tracking http://127.0.0.1:{port}: the server does not answer"):
        trials("demo", runs_dir=redirected(runs, f"http://127.0.0.1:{port}"))
    with pytest.raises(PreflightError, match=r"postgresql://me:\*\*\*@127.0.0.1.*does not answer"):
        trials("demo", runs_dir=redirected(runs, f"postgresql://me:secret@127.0.0.1:{port}/db"))
    assert time.monotonic() - begin < SOON


def test_a_server_that_is_silent_is_one_line_within_seconds(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert reachable.ANSWER_WITHIN <= 5
    monkeypatch.setattr(reachable, "ANSWER_WITHIN", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        begin = time.monotonic()
        with pytest.raises(PreflightError, match="does not answer"):
            trials("demo", runs_dir=redirected(runs, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - begin < SOON


def test_a_database_that_is_gone_is_not_made_again(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="the database no longer exists"):
        trials("demo", runs_dir=redirected(runs, f"sqlite:///{tmp_path}/gone.db"))
    assert not (tmp_path / "gone.db").exists()


def test_a_run_that_was_deleted_with_its_experiment_is_one_line(runs: Path) -> None:
    record = runs / "demo" / "tracking.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "run_id": "f" * 32}))
    with pytest.raises(UserError, match=r"^demo: its run f+ no longer exists in MLflow$") as error:
        trials("demo", runs_dir=runs)
    assert "\n" not in str(error.value)


def test_a_password_is_never_printed_and_must_come_from_the_environment(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masked = "postgresql://me:***@127.0.0.1:1/db"
    with pytest.raises(PreflightError, match="passwords and tokens are not stored; set MLFLOW_TRACKING_URI"):
        find(["demo"], redirected(runs, masked))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@127.0.0.1:1/db")
    assert find(["demo"], runs)[0].uri == "postgresql://me:secret@127.0.0.1:1/db"


def test_reading_makes_the_environment_neither_more_nor_less(store: Store) -> None:
    import os

    before = dict(os.environ)
    trials("demo", runs_dir=store.runs)
    assert dict(os.environ) == before


@pytest.mark.slow
def test_two_thousand_trials_of_twenty_points_are_reported_whole(tmp_path: Path) -> None:
    from io import StringIO

    from rich.console import Console

    from saebench.report.text import show

    many = simulate(levels=(8, 16, 32, 64, 128), widths=(768, 1536, 3072, 6144), points=48)
    sweep_data.log_many(tmp_path / "m.db", many, tmp_path / "runs", points=20, keys=8)
    report = load("demo", runs_dir=tmp_path / "runs")
    show(report, Console(file=StringIO(), width=140))
    assert len(report.frame) == len(many) == 2000
    assert report.frame["eval/fvu"].notna().all()
    assert report.frame["state"].value_counts().to_dict() == Counter(trial["state"] for trial in many)


def test_the_night_between_two_attempts_is_no_time_of_a_trial() -> None:
    """12.5 s in two attempts, eight hours apart."""
    night = 8 * 3600 * 1000
    assert row_of("a", {"saebench.seconds": "12.5"}, {}, {}, 1000, 1000 + night)["duration_s"] == 12.5
    assert row_of("a", {}, {}, {}, 1000, 1000 + night)["duration_s"] == 8 * 3600, "a record without the tag"
