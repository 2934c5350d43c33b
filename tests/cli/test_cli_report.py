"""report, best, export, ui: from the command line to files and exit codes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from report import sweep_data
from report.sweep_data import Store
from safetensors.numpy import save_file

from saebench.cli import cli
from saebench.cli.report import PLOTS
from saebench.errors import UserError
from saebench.report.document import Report
from saebench.report.record import Record
from saebench.tracking import views


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The sweep `demo`, with weights for trial 0 in its directory and as artifacts for trial 1."""
    store = sweep_data.make_store(tmp_path_factory.mktemp("store"))
    _weights(store.runs / "demo" / "trials" / "0000" / "sae")
    return store


def _weights(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"W_dec": np.eye(3, dtype=np.float32)}, folder / "sae.safetensors")
    (folder / "sae.json").write_text('{"type": "topk"}')
    return folder


def call(store: Store, *arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments), "--runs-dir", str(store.runs)])


def done(store: Store, *arguments: object) -> Result:
    result = call(store, *arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result


def test_json_has_an_object_per_trial(store: Store) -> None:
    rows = json.loads(done(store, "report", "demo", "--format", "json").stdout)
    assert len(rows) == 90
    assert {"trial", "state", "type", "k", "dict_size", "seed", "lr", "eval/fvu"} <= rows[0].keys()
    assert {row["state"] for row in rows} == {"complete", "pruned", "failed"}


def test_the_default_is_the_newest_sweep_in_the_terminal(store: Store) -> None:
    lines = done(store, "report").stdout.splitlines()
    assert lines[0] == "demo  90 trials: 72 complete, 17 pruned, 1 failed"
    assert lines[1].startswith("sentence-transformers/all-MiniLM-L6-v2 on parquet; ")
    assert lines[3].startswith("batchtopk reconstructs ")
    assert lines[4].startswith("batchtopk has the least FVU at equal L0: better than topk (")


@pytest.mark.parametrize("suffix", ["csv", "md", "json", "html", "tex", "latex", "parquet", "txt"])
def test_the_format_follows_the_file_s_name(store: Store, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / "deep" / f"report.{suffix}"
    result = done(store, "report", "demo", "--out", out)
    assert f"written: {out}" in result.stderr
    begins = {"csv": b"sweep,trial,", "md": b"# demo", "json": b"[\n", "html": b"<!DOCTYPE html>",
              "tex": b"\\documentclass", "latex": b"\\documentclass", "parquet": b"PAR1",
              "txt": b"demo  90 trials"}  # fmt: skip
    assert out.read_bytes().startswith(begins[suffix])


def test_one_table_in_raw_numbers(store: Store, tmp_path: Path) -> None:
    done(store, "report", "demo", "--table", "arms", "--out", tmp_path / "arms.csv")
    assert len(pd.read_csv(tmp_path / "arms.csv")) == 18
    with pytest.raises(UserError, match="holds one table"):
        _raise(call(store, "report", "--table", "arms", "--table", "strata", "--format", "csv"))


def _raise(result: Result) -> None:
    assert result.exception is not None
    raise result.exception


def test_a_table_without_rows_says_why(store: Store) -> None:
    """The demo has neither labels nor, but for one trial, SAEs."""
    lines = done(store, "report", "demo", "--table", "probing", "--table", "stability").stdout.splitlines()
    assert lines[2] == "k-sparse probing: none"
    assert "for a dataset with enough labels" in lines[3]
    assert "Stability of latents across seeds: none" in lines
    assert any(line.startswith("note: stability of latents: no readable SAE of demo/0, ") for line in lines)


def test_where_narrows_everything(store: Store) -> None:
    rows = json.loads(done(store, "report", "--where", "type=batchtopk", "--where", "k=16", "--format", "json").stdout)
    assert {(row["type"], row["k"]) for row in rows} == {("batchtopk", 16)}


def test_plots_go_where_they_are_told(store: Store, tmp_path: Path) -> None:
    result = done(store, "report", "--plot", tmp_path / "p.png")
    assert result.stdout == ""
    assert (tmp_path / "p.png").read_bytes()[1:4] == b"PNG"
    done(store, "report", "--plot", tmp_path / "q.svg", "--chart", "all")
    assert {p.name for p in tmp_path.glob("q-*.svg")} == {
        f"q-{name}.svg" for name in ("pareto", "forest", "curves", "dead", "density", "l0", "parallel")
    }


def test_what_cannot_be_drawn_is_said_in_one_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = [sweep_data.with_state(trial, "failed", "crash") for trial in sweep_data.simulate()]
    monkeypatch.setattr("saebench.report.load", lambda *_, **__: Report(Record(sweep_data.frame_of(failed))))
    result = call(store, "report", "--plot", tmp_path / "p.png", "--chart", "all")
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == (
        f"{tmp_path / 'p.png'}: nothing to draw for {', '.join(PLOTS)}: no trial has the data"
    )
    assert not list(tmp_path.iterdir())


def test_a_chart_that_is_missing_among_all_is_named(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = sweep_data.simulate()
    for trial in trials:
        del trial["metrics"]["eval/dead_fraction"]
    monkeypatch.setattr("saebench.report.load", lambda *_, **__: Report(Record(sweep_data.frame_of(trials))))
    result = done(store, "report", "--plot", tmp_path / "p.svg", "--chart", "all")
    drawn = {path.stem.removeprefix("p-") for path in tmp_path.iterdir()}
    assert "pareto" in drawn
    assert "dead" not in drawn
    missing = ", ".join(name for name in PLOTS if name not in drawn)
    assert result.stderr.splitlines()[-1].startswith(f"nothing to draw for {missing}: no trial has the data")


def test_the_page_goes_into_the_sweep_s_directory_unless_told_otherwise(store: Store) -> None:
    result = done(store, "report", "--format", "html")
    page = store.runs / "demo" / "report" / "report.html"
    assert str(page) in result.stderr
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_page_and_plots_can_be_attached_to_the_run(store: Store) -> None:
    from mlflow import MlflowClient

    from saebench.report.sources import find

    assert "report/report.html" in done(store, "report", "--log", "--table", "verdict").stderr
    run = find(["demo"], store.runs)[0].run_id
    attached = {item.path for item in MlflowClient(tracking_uri=store.uri).list_artifacts(run, "report")}
    assert {"report/report.html", "report/plot-pareto.png", "report/plot-curves.png"} <= attached


def main(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The real command in a process of its own."""
    code = "import sys; from saebench.cli import main; sys.argv[0] = 'saebench'; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_sweep_that_is_not_there_is_one_line_and_exit_code_2(store: Store) -> None:
    result = main("report", "nosuch", "--runs-dir", store.runs)
    assert result.returncode == 2
    assert result.stderr == f"saebench: nosuch: no such sweep in {store.runs}; there are: demo\n"


def test_what_mlflow_is_warned_of_stops_no_report(store: Store) -> None:
    command = [sys.executable, "-W", "error", "-m", "saebench", "best", "demo", "--runs-dir", str(store.runs)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("place", ["file/x.{}", "folder.{}"])
def test_a_file_that_cannot_be_written_is_one_line(store: Store, tmp_path: Path, option: str, place: str) -> None:
    file = tmp_path / place.format("csv" if option == "--out" else "png")
    (tmp_path / "file").touch()
    if place.startswith("folder"):
        file.mkdir()
    result = main("report", "demo", "--runs-dir", store.runs, option, file)
    assert result.returncode == 2
    assert result.stderr.startswith(f"saebench: {file}: cannot be written: ")
    assert result.stderr.count("\n") == 1


def test_a_server_that_is_not_there_is_one_line_and_exit_code_5(store: Store) -> None:
    result = main("report", "demo", "--tracking-uri", "http://127.0.0.1:9", "--runs-dir", store.runs)
    assert result.returncode == 5
    assert result.stderr.startswith("saebench: tracking http://127.0.0.1:9: the server does not answer")
    assert result.stderr.count("\n") == 1


def test_no_command_of_this_file_imports_torch(store: Store) -> None:
    code = (
        "import sys; from saebench.cli import cli\n"
        f"cli(['report', 'demo', '--runs-dir', {str(store.runs)!r}, '--table', 'all'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules, 'torch'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]


# --- best ------------------------------------------------------------------------------------------------------------


def test_best_names_the_best_trial_and_where_it_lies(store: Store) -> None:
    result = done(store, "best", "demo", "--where", "type=batchtopk", "--where", "k=32")
    last = result.stdout.strip().splitlines()[-1]
    rows = json.loads(done(store, "best", "demo", "--where", "type=batchtopk", "--where", "k=32", "--json").stdout)
    assert len(rows) == 1
    by = f"least eval/fvu {rows[0]['objective']:.4f}, mean over {rows[0]['seeds']} comparing seeds"
    what = f"batchtopk, k=32, n=3072; {by}"
    assert last.startswith(f"best: demo/{rows[0]['best_trial']} ({what}); {store.runs}/demo/trials/")
    assert "whether arms differ" not in last
    both = done(store, "best", "demo").stdout.strip().splitlines()[-1]
    assert both.endswith("; whether arms differ: saebench report demo")


def test_best_of_all_comes_first(store: Store) -> None:
    rows = json.loads(done(store, "best", "--json").stdout)
    assert [row["objective"] for row in rows] == sorted(row["objective"] for row in rows)
    assert len(rows) == 9


def test_best_of_nothing_says_so(store: Store) -> None:
    with pytest.raises(UserError, match="no complete trial that --where keeps"):
        _raise(call(store, "best", "demo", "--where", "type=gated"))


def _best_run(store: Store) -> tuple[str, Path]:
    """Id of the best run of TopK at k 32, and where MLflow would have its SAE."""
    from mlflow import MlflowClient

    row = json.loads(done(store, "best", "--where", "k=32", "--where", "type=topk", "--json").stdout)[0]
    frame = pd.DataFrame(json.loads(done(store, "report", "--format", "json").stdout))
    run = frame.loc[frame["trial"] == row["best_trial"], "run_id"].item()
    uri = MlflowClient(tracking_uri=store.uri).get_run(run).info.artifact_uri
    return run, Path(uri.removeprefix("file://")) / "sae"


def test_best_registers_the_weights_that_mlflow_has(store: Store) -> None:
    from mlflow import MlflowClient

    run, folder = _best_run(store)
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ("best", "--where", "k=32", "--where", "type=topk", "--register", "demo-topk-32")
    with pytest.raises(UserError, match="neither a logged model nor a folder sae"):
        _raise(call(store, *arguments))
    _weights(folder)
    for version in ("1", "2"):
        assert f"as demo-topk-32, version {version}" in done(store, *arguments).stderr
    found = MlflowClient(tracking_uri=store.uri).get_model_version("demo-topk-32", "1")
    assert (found.run_id, found.tags["saebench.sweep"]) == (run, "demo")


def test_a_model_s_name_is_checked_before_anything_is_made(store: Store) -> None:
    _weights(_best_run(store)[1])
    with pytest.raises(UserError, match="a model's name has no"):
        _raise(call(store, "best", "--where", "k=32", "--where", "type=topk", "--register", "a/b'c"))


# --- export ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo/0", "demo/0000"])
def test_export_copies_the_weights(store: Store, tmp_path: Path, name: str) -> None:
    result = done(store, "export", name, "--to", tmp_path / "out")
    assert result.stdout.splitlines() == [str(tmp_path / "out" / f) for f in ("sae.json", "sae.safetensors")]
    original = store.runs / "demo" / "trials" / "0000" / "sae" / "sae.safetensors"
    assert (tmp_path / "out" / "sae.safetensors").read_bytes() == original.read_bytes()


def test_an_exported_sae_says_what_it_was_trained_on(store: Store, tmp_path: Path) -> None:
    """trial.json is the trial's config, from its directory or from MLflow."""
    from mlflow import MlflowClient

    config = tmp_path / "config.json"
    config.write_text('{"data": {"model": "m"}}')
    shutil.copytree(store.runs / "demo" / "trials" / "0000", tmp_path / "trial")
    shutil.copy(config, tmp_path / "trial")
    done(store, "export", tmp_path / "trial", "--to", tmp_path / "here")
    frame = pd.DataFrame(json.loads(done(store, "report", "--format", "json").stdout))
    run, client = frame.loc[frame["trial"] == 2, "run_id"].item(), MlflowClient(tracking_uri=store.uri)
    client.log_artifacts(run, str(_weights(tmp_path / "w")), "sae")
    client.log_artifact(run, str(config))
    done(store, "export", run, "--to", tmp_path / "away")
    for out in ("here", "away"):
        assert sorted(file.name for file in (tmp_path / out).iterdir()) == ["sae.json", "sae.safetensors", "trial.json"]
        assert (tmp_path / out / "trial.json").read_text() == config.read_text()


def test_export_takes_a_trial_s_directory(store: Store, tmp_path: Path) -> None:
    done(store, "export", store.runs / "demo" / "trials" / "0000", "--to", tmp_path / "out")
    assert (tmp_path / "out" / "sae.json").is_file()


def test_export_gets_from_mlflow_what_is_not_here(store: Store, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    frame = pd.DataFrame(json.loads(done(store, "report", "--format", "json").stdout))
    run = frame.loc[frame["trial"] == 1, "run_id"].item()
    with pytest.raises(UserError, match="no artifact sae"):
        _raise(call(store, "export", "demo/1", "--to", tmp_path / "early"))
    MlflowClient(tracking_uri=store.uri).log_artifacts(run, str(_weights(tmp_path / "w")), "sae")
    done(store, "export", "demo/1", "--to", tmp_path / "by number")
    done(store, "export", run, "--to", tmp_path / "by run")
    for name in ("by number", "by run"):
        assert {p.name for p in (tmp_path / name).iterdir()} == {"sae.json", "sae.safetensors"}


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        ("demo/999", r"demo: no trial 999 \(trials: 0 to 89\)"),
        ("nosuch/1", "nosuch: no such sweep"),
        ("demo", r"demo: not a trial; give SWEEP/NUMBER"),
    ],
)
def test_export_of_what_is_not_there(store: Store, tmp_path: Path, trial: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _raise(call(store, "export", trial, "--to", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_export_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        _raise(call(store, "export", "demo/0", "--to", tmp_path))


def test_a_layout_that_is_not_installed_is_said(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, p=None: None if "compat" in n else real(n, p))
    with pytest.raises(UserError, match=r"has no saebench\.compat\.saelens"):
        _raise(call(store, "export", "demo/0", "--to", tmp_path / "out", "--format", "saelens"))


# --- ui --------------------------------------------------------------------------------------------------------------


def test_ui_starts_mlflow_on_loopback_with_the_sweep_s_store(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, str], str]] = []

    def serve(command: list[str], environment: dict[str, str], health: str, ready: Callable[[], None]) -> int:
        started.append((command, environment, health))
        ready()
        return 0

    monkeypatch.setattr("saebench.cli.serve.serve", serve)
    result = done(store, "ui", "demo")
    (*command, port), environment, health = started[-1]
    assert command == [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port"]
    assert environment == {"MLFLOW_BACKEND_STORE_URI": store.uri}, "a command line is for every user to read"
    assert health == f"http://127.0.0.1:{port}/health"
    assert result.stdout.startswith(f"http://127.0.0.1:{port}/#/experiments/77")


def test_ui_opens_a_saved_view_only_where_there_is_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setattr("saebench.cli.serve.serve", lambda _command, _environment, _health, ready: ready() or 0)
    experiment = str(json.loads((store.runs / "demo" / "tracking.json").read_text())["experiment_id"])
    assert views.page(experiment, "demo", saved=()) + " " in done(store, "ui", "demo").stdout
    for key, value in views.tags("demo", {}, 1.5).items():
        MlflowClient(store.uri).set_experiment_tag(experiment, key, value)
    assert views.page(experiment, "demo") + " " in done(store, "ui", "demo").stdout


def test_ui_of_a_server_is_its_address(tmp_path: Path) -> None:
    sweep_data.write_directory(tmp_path / "there", "http://me:secret@tracking.example:5000/", "7", "f" * 32)
    result = CliRunner().invoke(cli, ["ui", "there", "--runs-dir", str(tmp_path)])
    assert result.stdout == f"http://***@tracking.example:5000{views.page('7', 'there')}\n"


def test_ui_does_not_take_a_port_that_is_taken(store: Store) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="in use"):
            _raise(call(store, "ui", "demo", "--port", taken.getsockname()[1]))
