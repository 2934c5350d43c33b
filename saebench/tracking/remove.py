"""The runs of a sweep, found and put into MLflow's bin."""

from __future__ import annotations

from collections.abc import Sequence

from saebench.tracking.server import is_lasting, open_reader, reading


def runs_of(uri: str, experiment_id: str, parent: str) -> list[str]:
    """Ids of the children of a sweep's parent run, then the parent's. Raises PreflightError in one line."""
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
    """Put the runs into MLflow's bin; one that is there already, or gone, is passed over. Raises PreflightError."""
    client = open_reader(uri)
    with reading(uri):
        for run in runs:
            try:
                client.delete_run(run)
            except Exception as error:
                if not is_lasting(error):
                    raise
