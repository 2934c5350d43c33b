"""Whose SAE goes to MLflow (`tracking.log_sae`), and that nothing else depends on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import trial_config
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from saebench.config import TrialConfig
from saebench.errors import SpecError, UserError
from saebench.report import load, pick
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.lock import check_unchanged
from saebench.runs.paths import SweepPaths
from saebench.runs.state import TrialState
from saebench.runs.tags import Tag
from saebench.spec import parse_spec
from saebench.sweep_config import TrackingConfig
from saebench.tracking import Tracker, server
from saebench.tracking.best import best_trials

SCORES = [("a", "p0", 0, 0.5), ("a", "p1", 0, 0.4), ("a", "p1", 1, 0.2), ("b", "p0", 0, 0.7), ("b", "p1", 0, 0.6)]
"""stratum, point, seed, the objective in the end; a trial's number is its place."""


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'mlflow.db')}"


@pytest.fixture
def sweep(tmp_path: Path) -> SweepPaths:
    """A sweep whose trials have all ended, on disk."""
    paths = SweepPaths(tmp_path / "runs" / "toy")
    for number, (stratum, point, seed, value) in enumerate(SCORES):
        trial = paths.trial(number)
        config = trial_config(number, seed).model_copy(update={"stratum": stratum, "point": point})
        write_json(trial.config, config.model_dump(mode="json"))
        log = EventLog(trial.events)
        log.append(Event("eval", 20, {"eval/mse": 9.0, "eval/fvu": value, "eval/l0": 4.0}))
        log.append(Event("done", 40, {"eval/mse": value, "eval/fvu": value, "eval/l0": 4.0}))
        log.close()
        trial.log.write_text("hello\n")
        trial.sae.mkdir()
        (trial.sae / "sae.json").write_text("{}")
        (trial.sae / "sae.safetensors").write_bytes(bytes([number]))
        TrialState(number, stratum, point, seed, 40, state="complete").write(trial)
    write_json(paths.lock, {"name": "toy", "spec": {"search": {"objective": "eval/mse"}}})
    return paths


def track(sweep: SweepPaths, uri: str, log_sae: str, status: str = "FINISHED", **search: str) -> Tracker:
    """A scheduler that finds everything done."""
    made = Tracker(sweep, TrackingConfig(uri=uri, log_sae=log_sae), "toy", interval=0.02, share=1.0)  # type: ignore[arg-type]
    made.start({"spec": {"search": {"objective": "eval/mse", "direction": "minimize", **search}}, "host": "box"})
    assert made.close(status) == (0, None)
    return made


def copied(uri: str, made: Tracker) -> set[int]:
    """Trials whose SAE is an artifact; all have their log and config there."""
    client = server.connect(uri)
    found = set()
    for number, sent in made._book.trials.items():
        names = {item.path for item in client.list_artifacts(sent.run_id)}
        assert {"log.txt", "config.json"} <= names
        found |= {number} if "sae" in names else set()
    return found


def test_all_is_the_default(sweep: SweepPaths, uri: str) -> None:
    assert TrackingConfig().log_sae == "all"
    assert copied(uri, track(sweep, uri, "all")) == {0, 1, 2, 3, 4}


def test_none_copies_logs_and_configs_only(sweep: SweepPaths, uri: str) -> None:
    assert copied(uri, track(sweep, uri, "none")) == set()


def test_best_copies_one_per_stratum_at_the_end_and_by_the_sweep_s_own_objective(sweep: SweepPaths, uri: str) -> None:
    """In a, p1 alone has both seeds, and its trial 2 is the better one."""
    assert copied(uri, track(sweep, uri, "best", status="KILLED")) == set(), "the sweep is not at its end"
    assert copied(uri, track(sweep, uri, "best")) == {2, 4}


def test_best_is_the_largest_where_larger_is_better(sweep: SweepPaths, uri: str) -> None:
    assert copied(uri, track(sweep, uri, "best", direction="maximize")) == {1, 3}


def test_it_may_change_at_every_start_and_what_is_missing_then_follows(sweep: SweepPaths, uri: str) -> None:
    first = track(sweep, uri, "none")
    assert copied(uri, track(sweep, uri, "best")) == {2, 4}
    again = track(sweep, uri, "all")
    assert copied(uri, again) == {0, 1, 2, 3, 4}
    assert again.run_id == first.run_id
    before = {"tracking": {"log_sae": "all", "uri": None}}
    assert check_unchanged(before, {"tracking": {"log_sae": "none", "uri": None}}, sweep, extend=False) == {}


def test_the_best_that_the_tracker_copies_are_those_that_the_report_names(tmp_path: Path) -> None:
    """Sweeps with roles and sweeps made before; the trial named is the best of the point, the search seed's too."""
    from report import sweep_data

    from saebench.report import points, tables

    for case in range(6):
        if case % 2:
            some = sweep_data.simulate_search(levels=(16, 32), points=4, noise=0.05, rng_seed=case)
        else:
            old = {"widths": (1536,), "points": 3, "seeds": (0, 1), "seed_sd": 0.1}
            some = sweep_data.simulate(levels=(16, 32), rng_seed=case, **old)
        frame = points.annotate(sweep_data.frame_of(some))
        chosen = points.chosen(frame, "eval/fvu", maximize=False)
        expected = set(tables.best(frame, chosen, [], "eval/fvu", False).frame["best_trial"])
        paths = SweepPaths(tmp_path / str(case))
        for trial in some:
            write_trial(paths, trial)
        complete = [trial["trial"] for trial in some if trial["state"] == "complete"]
        found = best_trials(paths, complete, "eval/fvu", maximize=False)
        assert {best.number for best in found} == expected


def write_trial(paths: SweepPaths, trial: dict[str, Any]) -> None:
    own = {"stratum": trial["stratum"], "point": trial["point"]}
    config: TrialConfig = trial_config(trial["trial"], trial["seed"]).model_copy(update=own)
    place = paths.trial(trial["trial"])
    write_json(place.config, config.model_dump(mode="json"))
    log = EventLog(place.events)
    log.append(Event("done", 40, {"eval/fvu": trial["metrics"]["eval/fvu"]}))
    log.close()
    state = TrialState(trial["trial"], trial["stratum"], trial["point"], trial["seed"], 40, state="complete")
    state.search = {Tag.ROLE: trial["role"], Tag.CHOICE: trial.get("choice", "")} if trial.get("role") else {}
    state.write(place)
    place.sae.mkdir()
    (place.sae / "sae.json").write_text("{}")
    (place.sae / "sae.safetensors").write_bytes(b"weights")


def test_a_trial_that_was_retried_has_its_new_sae_copied(sweep: SweepPaths, uri: str) -> None:
    track(sweep, uri, "all")
    made = Tracker(sweep, TrackingConfig(uri=uri), "toy", interval=0.02, share=1.0)
    made.start({})
    made.open(trial_config(0))
    (sweep.trial(0).sae / "sae.safetensors").write_bytes(b"new")
    made.close_trial(0, "complete")
    assert made.close() == (0, None)
    file = server.connect(uri).download_artifacts(made._book.trials[0].run_id, "sae/sae.safetensors")
    assert Path(file).read_bytes() == b"new"


@pytest.mark.parametrize("log_sae", ["all", "best"])
def test_an_sae_that_cannot_be_stored_keeps_no_sweep_from_its_end(
    sweep: SweepPaths, uri: str, monkeypatch: pytest.MonkeyPatch, log_sae: str
) -> None:
    store = LocalArtifactRepository.log_artifact

    def full(self: Any, file: str, artifact_path: str | None = None) -> None:
        if artifact_path == "sae":
            raise OSError("no space left on device")
        store(self, file, artifact_path)

    monkeypatch.setattr("saebench.tracking.tracker._LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(LocalArtifactRepository, "log_artifact", full)
    made = track(sweep, uri, log_sae)
    client = server.connect(uri)
    assert client.get_run(made.run_id).info.status == "FINISHED"
    tags = {number: client.get_run(sent.run_id).data.tags for number, sent in made._book.trials.items()}
    refused = {number for number, said in tags.items() if "no space left" in said.get("saebench.artifacts", "")}
    assert refused == ({0, 1, 2, 3, 4} if log_sae == "all" else {2, 4})
    monkeypatch.undo()
    assert refused <= copied(uri, track(sweep, uri, log_sae)), "the next scheduler tries again"


# --- taking out what was not copied ----------------------------------------------------------------------------------


def test_best_and_export_use_the_sweep_s_directory(sweep: SweepPaths, uri: str, tmp_path: Path) -> None:
    made, runs = track(sweep, uri, "none"), str(sweep.root.parent)
    report = load("toy", runs_dir=runs)
    assert int(pick.best(report).iloc[0]["best_trial"]) == 2
    pick.export("toy/2", tmp_path / "by name", runs=runs)
    pick.export("toy/2", tmp_path / "by server", runs=runs, tracking_uri=uri)
    pick.export(made._book.trials[2].run_id, tmp_path / "by run", runs=runs, tracking_uri=uri)
    for name in ("by name", "by server", "by run"):
        assert (tmp_path / name / "sae.safetensors").read_bytes() == b"\2"


@pytest.mark.parametrize("which", ["toy/2", "run"])
def test_without_the_directory_one_line_says_where_the_sae_is(
    sweep: SweepPaths, uri: str, tmp_path: Path, which: str
) -> None:
    made = track(sweep, uri, "none")
    trial = which if which != "run" else made._book.trials[2].run_id
    with pytest.raises(UserError, match=r"no artifact sae: .*log_sae .* \(toy/trials/0002/sae on box\)$") as error:
        pick.export(trial, tmp_path / "out", runs=str(tmp_path / "elsewhere"), tracking_uri=uri)
    assert "\n" not in str(error.value)


def test_registering_copies_the_weights_that_only_the_directory_has(sweep: SweepPaths, uri: str) -> None:
    made = track(sweep, uri, "none")
    report = load("toy", runs_dir=sweep.root.parent)
    version, what = pick.register(report, report.table("best").rows()[0], "toy-best")
    assert (version, what.split(" (")[0]) == ("1", "its weights")
    assert copied(uri, made) == {2}


def test_a_logged_model_of_an_sae_that_is_not_copied_is_an_error_of_the_spec() -> None:
    spec = {
        "name": "toy",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 10_000},
        "sae": [{"type": "topk", "k": 4, "dict_size": 32}],
        "train": {"samples": 10_000},
        "tracking": {"log_model": True, "log_sae": "none"},
    }
    with pytest.raises(SpecError, match=r"tracking.log_model.*log_sae"):
        parse_spec(spec)
    spec["tracking"] = {"log_model": True, "log_sae": "best"}
    assert parse_spec(spec).tracking.log_model
