"""Read files of trials from MLflow's artifacts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError
from saebench.report.sources import Source
from saebench.runs.paths import EVALUATION
from saebench.runs.tags import Tag
from saebench.tracking.mlflow_errors import reading
from saebench.tracking.server import open_reader

if TYPE_CHECKING:
    import numpy as np


def arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the tensors of a safetensors file; None if it is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None


def evaluations(source: Source, places: Mapping[str, str], at_once: int) -> dict[str, dict[str, np.ndarray]]:
    """Return the evaluations of these runs (run id -> artifact URI) that exist, with many requests at a time."""
    if not places:
        return {}
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    def fetch(place: str) -> dict[str, np.ndarray] | None:
        with tempfile.TemporaryDirectory() as folder:
            try:  # not through the client: it would ask for the whole run first, and list its files
                repository: Any = get_artifact_repository(place, tracking_uri=source.uri)
                return arrays(Path(repository.download_artifacts(EVALUATION, folder)))
            except (MlflowException, requests.RequestException, OSError):
                return None

    with reading(source.uri), ThreadPoolExecutor(at_once) as pool:
        found = zip(places, pool.map(fetch, places.values()), strict=True)
        return {run: held for run, held in found if held is not None}


def download(source: Source, run_id: str, name: str, to: Path) -> Path:
    """Return an artifact of a trial; raise UserError in one line if it is missing."""
    client = open_reader(source.uri)
    with reading(source.uri):
        return artifact(client, run_id, name, to)


def artifact(client: Any, run_id: str, name: str, to: Path) -> Path:
    """Write a file or folder of a run, at its root or one folder below, into `to`; raise UserError if it is missing."""
    there = client.list_artifacts(run_id)
    paths = [item.path for item in there]
    if name not in paths:
        paths += [inner.path for item in there if item.is_dir for inner in client.list_artifacts(run_id, item.path)]
    path = next((path for path in paths if Path(path).name == name), None)
    if path is None:
        raise UserError(f"run {run_id}: no artifact {name}{_elsewhere(client, run_id, name)}")
    return Path(client.download_artifacts(run_id, path, str(to)))


def _elsewhere(client: Any, run_id: str, name: str) -> str:
    """Return where the artifact may be instead."""
    tags = client.get_run(run_id).data.tags
    if name != "sae" or not {Tag.SWEEP, Tag.TRIAL} <= tags.keys():
        return ""
    place = f"{tags[Tag.SWEEP]}/trials/{tags[Tag.TRIAL]}/sae"
    host = f" on {tags[Tag.HOST]}" if Tag.HOST in tags else ""
    return f": with tracking.log_sae best or none it stays in the sweep's directory ({place}{host})"
