"""Read a sweep's runs from MLflow's SQLite file with one query per table.

MLflow's search makes an object, with SQLAlchemy's bookkeeping, of every param, tag and metric: 700,000 objects and most
of the time of a report on 10,000 trials.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from saebench.report.wire import Run

_WANTED = """
CREATE TEMP TABLE wanted AS
SELECT row_number() OVER (ORDER BY start_time DESC, runs.run_uuid) AS place,
       runs.run_uuid AS id, start_time, end_time, status, artifact_uri
FROM runs JOIN tags ON tags.run_uuid = runs.run_uuid
WHERE tags.key = 'mlflow.parentRunId' AND tags.value = :parent
  AND experiment_id = :experiment AND lifecycle_stage = 'active'
"""
"""The runs, numbered in the order of MLflow's search."""
_RUNS = "SELECT place, id, start_time, end_time, status, artifact_uri FROM wanted ORDER BY place"
_TAGS = "SELECT place, key, value FROM wanted JOIN tags ON run_uuid = id ORDER BY place"
_PARAMS = "SELECT place, key, value FROM wanted JOIN params ON run_uuid = id ORDER BY place"
_METRICS = (
    "SELECT place, key, CASE WHEN is_nan THEN NULL ELSE value END "
    "FROM wanted JOIN latest_metrics ON run_uuid = id ORDER BY place"
)


def runs(file: Path, experiment_id: str, parent: str) -> Iterator[Run]:
    """Yield the runs under a parent run that are not deleted, the newest first, reading as they are consumed. Raises
    sqlite3.Error at once if the file cannot be opened read-only, or if MLflow's tables are others than expected."""
    database = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
    try:
        database.execute("BEGIN")  # every query reads the same state of a running sweep
        database.execute(_WANTED, {"parent": parent, "experiment": int(experiment_id)})
        kinds = [database.execute(query) for query in (_TAGS, _PARAMS, _METRICS)]
    except sqlite3.Error:
        database.close()
        raise
    return _runs(database, kinds)


def _runs(database: sqlite3.Connection, kinds: list[sqlite3.Cursor]) -> Iterator[Run]:
    strings: dict[str, str] = {}
    with closing(database):
        tags, params, metrics = (_Values(cursor, strings) for cursor in kinds)
        for place, run, start, end, status, artifacts in database.execute(_RUNS):
            said, given = ({k: v or "" for k, v in kind.of(place).items()} for kind in (tags, params))
            numbers = {k: math.nan if v is None else v for k, v in metrics.of(place).items()}
            yield Run(run, said, given, numbers, start, end, status, artifacts or "")


class _Values:
    """Rows (index of the run, key, value) of a table, returned run by run; equal strings are one object."""

    def __init__(self, rows: sqlite3.Cursor, strings: dict[str, str]) -> None:
        self._strings = strings
        self._groups = groupby(rows, key=lambda row: row[0])
        self._next = next(self._groups, None)

    def of(self, place: int) -> dict[str, Any]:
        """Return the values of one run; call it with rising places."""
        if self._next is None or self._next[0] != place:
            return {}
        found = {self._shared(key): self._shared(value) for _, key, value in self._next[1]}
        self._next = next(self._groups, None)
        return found

    def _shared(self, value: Any) -> Any:
        return self._strings.setdefault(value, value) if isinstance(value, str) else value
