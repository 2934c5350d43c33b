"""Export results of a sweep: the best trials, their files, MLflow's registry."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from saebench.errors import UserError
from saebench.report.artifacts import download
from saebench.report.document import Report
from saebench.report.read import read
from saebench.report.sources import Source, directory_of, find
from saebench.runs.paths import EXPORTED_CONFIG, SAE_WEIGHTS, TRIAL_CONFIG, SweepPaths, TrialPaths, runs_dir
from saebench.runs.secrets import mask
from saebench.runs.tags import Tag
from saebench.tracking.mlflow_errors import reading
from saebench.tracking.server import open_reader
from saebench.tracking.uploads import SAE_FILES, is_plain, sae_files

if TYPE_CHECKING:
    from pandas import DataFrame

ExportFormat = Literal["saebench", "saelens", "dictionary_learning"]


def best(report: Report) -> DataFrame:
    """The best trial of every arm and sparsity, best objective first; raises UserError if none is complete."""
    table = report.table("best").frame
    if not len(table):
        raise UserError(f"{report.name}: no complete trial{' that --where keeps' if report.where else ''}")
    return table.sort_values("objective", ascending=not report.record.maximize, ignore_index=True)


def register(report: Report, row: dict[str, Any], name: str) -> tuple[str, str]:
    """Register a trial's SAE in MLflow's model registry; returns (version, what was registered).

    Registers the logged model if the sweep logged one (`tracking.log_model`), else the folder of weights, which can be
    downloaded from the registry but not served; it is copied to MLflow first if it is only in the sweep's directory.
    """
    source = next(s for s in report.record.sources if s.name == row["sweep"])
    frame = report.frame
    trial = frame[(frame["sweep"] == row["sweep"]) & (frame["trial"] == row["best_trial"])].iloc[0]
    client = open_reader(source.uri)
    with reading(source.uri):
        run = client.get_run(trial["run_id"])
        uri, what = _model_uri(client, run, source.paths.trial(row["best_trial"]).sae if source.paths else None)
        known = {model.name for model in client.search_registered_models(filter_string=f"name = '{_safe(name)}'")}
        if name not in known:
            client.create_registered_model(name)
        tags = {Tag.SWEEP: row["sweep"], Tag.TRIAL: str(row["best_trial"])}
        version = client.create_model_version(name, uri, run_id=trial["run_id"], tags=tags)
    return str(version.version), what


def _safe(name: str) -> str:
    if not re.fullmatch(r"[^'/:.%\"]+", name):
        raise UserError(f"--register {name}: a model's name has no quotes, slashes, colons, dots or percent signs")
    return name


def _model_uri(client: Any, run: Any, local: Path | None = None) -> tuple[str, str]:
    models = run.outputs.model_outputs if run.outputs else []
    if models:
        # its place, not models:/<id>: MLflow would look that up in its default store, not in this one
        return str(client.get_logged_model(models[-1].model_id).artifact_location), "its logged model"
    folders = [item.path for item in client.list_artifacts(run.info.run_id) if item.is_dir]
    for folder in folders:
        if any(Path(inner.path).name == "MLmodel" for inner in client.list_artifacts(run.info.run_id, folder)):
            return f"{run.info.artifact_uri}/{folder}", "its logged model"
    if "sae" not in folders and local is not None and sae_files(local):
        for file in sae_files(local):
            client.log_artifact(run.info.run_id, str(file), "sae")
        folders.append("sae")
    if "sae" not in folders:
        raise UserError(f"run {run.info.run_id}: neither a logged model nor a folder sae among its artifacts")
    return f"{run.info.artifact_uri}/sae", "its weights (set tracking.log_model for a model that can be served)"


# --- export ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """The places of a trial's files."""

    name: str
    """SWEEP/NUMBER, or the run id."""
    local: TrialPaths | None
    source: Source | None = None
    run_id: str = ""


def export(
    trial: str, to: Path, kind: ExportFormat = "saebench", *, runs: str | None = None, tracking_uri: str | None = None
) -> list[Path]:
    """Write the SAE of `trial` into folder `to`, and trial.json with the trial's config (encoder, texts, training);
    return the files.

    `trial` is SWEEP/NUMBER, a trial's directory, or an MLflow run id. The weights come from the sweep's directory, else
    from MLflow. Raises UserError if there are none, or if `to` is not empty.
    """
    if to.is_dir() and any(to.iterdir()):
        raise UserError(f"{to}: not empty; give a new folder")
    writer = None if kind == "saebench" else _writer(kind)
    place = _locate(trial, runs, tracking_uri)
    with _weights(place) as folder:
        if writer is None:
            to.mkdir(parents=True, exist_ok=True)
            for name in SAE_FILES:
                if is_plain(folder / name):
                    shutil.copyfile(folder / name, to / name)
        else:
            writer(folder, to)
    if config := _config(place):
        (to / EXPORTED_CONFIG).write_bytes(config)
    return sorted(path for path in to.rglob("*") if path.is_file())


def _writer(kind: str) -> Any:
    """`export(folder, to)` of saebench.compat.<kind>."""
    name = f"saebench.compat.{kind}"
    if importlib.util.find_spec("saebench.compat") is None or importlib.util.find_spec(name) is None:
        raise UserError(f"--format {kind}: this installation of saebench has no {name}")
    return importlib.import_module(name).export


def _locate(trial: str, runs: str | None, tracking_uri: str | None) -> Place:
    directory = Path(trial)
    if (directory / TRIAL_CONFIG).is_file() or (directory / "sae").is_dir():
        return Place(trial, TrialPaths(directory.absolute()))
    if re.fullmatch(r"[0-9a-f]{32}", trial):
        return _run(trial, runs, tracking_uri)
    sweep, _, number = trial.rpartition("/")
    if not number.isdigit():
        raise UserError(f"{trial}: not a trial; give SWEEP/NUMBER, a trial's directory or an MLflow run id")
    if not tracking_uri:
        for root in (Path(sweep), runs_dir(runs) / sweep):
            paths = SweepPaths(root.absolute()).trial(int(number))
            if sweep and sae_files(paths.sae):
                return Place(trial, paths)
    source = find([sweep] if sweep else [], runs, tracking_uri)[0]
    frame = read([source]).frame
    found = frame[frame["trial"] == int(number)]
    if found.empty:
        numbers = f"0 to {frame['trial'].max()}" if len(frame) else "none"
        raise UserError(f"{source.name}: no trial {int(number)} (trials: {numbers})")
    local = source.paths.trial(int(number)) if source.paths else None
    return Place(f"{source.name}/{int(number)}", local, source, found.iloc[0]["run_id"])


def _run(run_id: str, runs: str | None, tracking_uri: str | None) -> Place:
    """Look up a run id on the given server, else on the newest sweep's."""
    import os

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or find([], runs)[0].uri
    client = open_reader(uri)
    with reading(uri):
        tags = client.get_run(run_id).data.tags
    return Place(run_id, directory_of(run_id, tags, runs_dir(runs)), Source("", uri, "", run_id), run_id)


@contextlib.contextmanager
def _weights(place: Place) -> Iterator[Path]:
    """Yield a folder with sae.safetensors and sae.json."""
    if place.local is not None and sae_files(place.local.sae):
        yield place.local.sae
        return
    if place.source is None:
        raise UserError(f"{place.name}: no {SAE_WEIGHTS} (the trial has not ended, or its weights were deleted)")
    with tempfile.TemporaryDirectory() as scratch:
        folder = download(place.source, place.run_id, "sae", Path(scratch))
        if not (folder / SAE_WEIGHTS).is_file():
            raise UserError(f"{place.name}: the artifact sae has no {SAE_WEIGHTS}")
        yield folder


def _config(place: Place) -> bytes:
    """The trial's config.json; empty if neither its directory nor MLflow has it."""
    if place.local is not None and is_plain(place.local.config):
        return mask(place.local.config.read_text("utf-8", "replace")).encode()
    if place.source is None:
        return b""
    with tempfile.TemporaryDirectory() as scratch, contextlib.suppress(UserError):
        return download(place.source, place.run_id, TRIAL_CONFIG, Path(scratch)).read_bytes()
    return b""
