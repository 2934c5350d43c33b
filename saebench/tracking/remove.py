"""Find the runs of a sweep in MLflow and delete them (MLflow can restore them)."""

from __future__ import annotations

from collections.abc import Sequence

from saebench.tracking.mlflow_errors import is_lasting, reading
from saebench.tracking.server import open_reader


def runs_of(uri: str, experiment_id: str, parent: str) -> list[str]:
    """Return the ids of the children of a sweep's parent run, then the parent's. Raises PreflightError."""
    client = open_reader(uri)
    found: list[str] = []
    token: str | None = None
    with reading(uri):
        while True:
            wanted = f"tags.`mlflow.parentRunId` = '{parent}'"
            page = client.search_runs([experiment_id], wanted, max_results=1000, page_token=token)
            found += [str(run.info.run_id) for run in page]
            token = page.token
            if not token:
                return [*found, parent]


def delete_runs(uri: str, runs: Sequence[str]) -> None:
    """Delete the runs in MLflow; skip those already deleted or missing. Raises PreflightError."""
    client = open_reader(uri)
    with reading(uri):
        for run in runs:
            try:
                client.delete_run(run)
            except Exception as error:
                if not is_lasting(error):
                    raise
