"""What exists on a tracking server: an experiment, a run, its artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from saebench.errors import PreflightError
from saebench.runs.secrets import mask
from saebench.tracking.address import artifact_root
from saebench.tracking.mlflow_errors import is_lasting
from saebench.tracking.uploads import Artifacts

if TYPE_CHECKING:
    from mlflow import MlflowClient


def experiment(client: MlflowClient, uri: str, name: str) -> str:
    """Return the id of the experiment `name`, created if need be. Raises PreflightError for a deleted one."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            tags = {"mlflow.experimentKind": "custom_model_development"}
            return str(client.create_experiment(name, artifact_location=artifact_root(uri), tags=tags))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process created it just now
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise PreflightError(
            f"tracking {mask(uri)}: the experiment {name!r} is deleted; restore it "
            f"(mlflow experiments restore -x {found.experiment_id}), or give tracking.experiment another name"
        )
    return str(found.experiment_id)


def find_run(client: MlflowClient, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the newest run that has all these tags and is not deleted; None if there is no such run."""
    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    found = client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return str(found[0].info.run_id) if found else None


def artifacts(client: MlflowClient, run_id: str, uri: str = "") -> Artifacts:
    """Return the repository for a run's artifacts. `uri`: the run's artifact URI if known, which saves the request for
    the whole run that the client would make before the first file."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    uri = uri or client.get_run(run_id).info.artifact_uri
    found: Artifacts = get_artifact_repository(uri, tracking_uri=client.tracking_uri)
    return found


def alive(client: MlflowClient, run_id: str) -> bool:
    """Return whether the run exists and is not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if is_lasting(error):
            return False
        raise
