"""What a sweep has found, in its run in MLflow: description, tags, numbers, files; and the description comes back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sweep_data import Store, make_store

from saebench.errors import PreflightError, UserError
from saebench.report import load
from saebench.report.publish import publish
from saebench.runs.tags import Tag


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    found = make_store(tmp_path_factory.mktemp("store"))
    floors = [{"floor": "kmeans", "k": 16, "dict_size": 1536, "values": {"test/fvu": 0.2}, "left_out": {}}]
    (found.runs / "demo" / "floors.json").write_text(json.dumps({"format": 1, "floors": floors}))
    return found


def test_the_run_says_what_was_found_and_a_second_time_the_same(store: Store) -> None:
    report = load("demo", runs_dir=store.runs)
    report.record.descriptions["demo"] = "Is <b>it</b> better?"
    source = report.record.sources[0]
    assert publish(report) == ["report/report.html", "report/verdict.md"]
    publish(report)
    client = MlflowClient(tracking_uri=store.uri)
    run = client.get_run(source.run_id)
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("Is &lt;b&gt;it&lt;/b&gt; better?\n\n**")
    assert note.count("Before you use it") == 1
    assert note.endswith("report/report.html")
    assert run.data.tags[Tag.REPORT] == report.verdict[:5000]
    assert run.data.metrics["floor/kmeans/fvu_k16_n1536"] == 0.2
    best = [row for row in report.table("best").rows() if row["level"] == 16]
    assert run.data.metrics["best/fvu_k16"] == pytest.approx(min(row["fvu"] for row in best))
    assert run.data.tags[f"{Tag.BEST}.k16"].startswith("trial demo/")
    verdict = client.download_artifacts(source.run_id, "report/verdict.md")
    assert "## Verdict" in Path(verdict).read_text()


def test_the_verdict_in_the_description_is_not_taken_for_the_sweep_s_own(store: Store) -> None:
    publish(load("demo", runs_dir=store.runs))
    again = load("demo", runs_dir=store.runs)
    assert again.record.descriptions["demo"] == ""
    client = MlflowClient(tracking_uri=store.uri)
    client.set_tag(again.record.sources[0].run_id, Tag.DESCRIPTION, "Is it better?")
    assert load("demo", runs_dir=store.runs).record.descriptions["demo"] == "Is it better?"


def test_a_server_that_is_gone_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left")

    report = load("demo", runs_dir=store.runs)
    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    with pytest.raises((UserError, PreflightError, OSError)):
        publish(report)
