"""MLflow -> one tidy DataFrame, a row per trial."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError
from saebench.report import sqlite_runs, wire
from saebench.report.local import local_rows
from saebench.report.record import Record
from saebench.report.rows import row_of, to_frame
from saebench.report.sources import Source, known_runs, pages
from saebench.report.table import number_of
from saebench.runs.tags import Tag
from saebench.tracking.address import sqlite_file
from saebench.tracking.mlflow_errors import is_lasting, reading
from saebench.tracking.server import open_reader

if TYPE_CHECKING:
    from pandas import DataFrame

_AT_ONCE = 8
"""Requests to the tracking server at a time."""


def read(sources: Sequence[Source]) -> Record:
    """Return all trials of these sweeps. Raises PreflightError if a tracking server cannot be read."""
    record, rows = Record(to_frame([]), tuple(sources)), []
    for source in sources:
        rows += _rows(source, record)
    record.frame = to_frame(rows)
    _note_missing(record.frame, record)
    if len({(s.search("objective", "eval/fvu"), s.search("direction", "minimize")) for s in sources}) > 1:
        record.note(f"the sweeps have different objectives; points are chosen by {record.objective}")
    return record


def _rows(source: Source, record: Record) -> list[dict[str, Any]]:
    client = open_reader(source.uri)
    with reading(source.uri):
        if deleted := _deleted(source, client):
            return _rows_of_directory(source, deleted, record)
        parent = client.get_run(source.run_id)
        rows, ids = [], set()
        for run in _runs(source, client):
            ids.add(run.id)
            if run.tags.get(Tag.KIND) == "trial":
                record.places[run.id] = run.artifacts
                rows.append(row_of(run.id, run.tags, run.params, run.metrics, run.start, run.end, run.status))
    if len(rows) < len(ids):
        record.note(f"{source.name}: {len(ids) - len(rows)} runs under this sweep are not saebench's: left out")
    tags = parent.data.tags
    record.descriptions[source.name] = tags.get(Tag.DESCRIPTION) or (
        "" if Tag.REPORT in tags else tags.get("mlflow.note.content", "")
    )
    _note_deleted(source, ids, record)
    rows = _one_per_trial(rows, source.name, record)
    _note_unfinished(source, parent.info.status, rows, record)
    return [{**row, "sweep": source.name} for row in rows]


def _runs(source: Source, client: Any) -> Iterable[wire.Run]:
    wanted = f"tags.`mlflow.parentRunId` = '{source.run_id}'"
    if wire.is_server(source.uri):
        return wire.runs(source.uri, source.experiment_id, wanted, _AT_ONCE)
    if (file := sqlite_file(source.uri)) is not None:
        with suppress(sqlite3.Error, ValueError):  # not readable in this way: MLflow reads it, or says why not
            return sqlite_runs.runs(file, source.experiment_id, source.run_id)
    query = {"experiment_ids": [source.experiment_id], "filter_string": wanted, "max_results": 1000}
    return (_plain(run) for run in pages(client.search_runs, **query))


def _plain(run: Any) -> wire.Run:
    info, data = run.info, run.data
    return wire.Run(
        info.run_id, data.tags, data.params, data.metrics,
        info.start_time, info.end_time, info.status, info.artifact_uri,
    )  # fmt: skip


def _deleted(source: Source, client: Any) -> str:
    """Return a sentence if the sweep's record in MLflow is deleted, because a search would find no runs; else an empty
    one."""
    try:
        experiment, parent = client.get_experiment(source.experiment_id), client.get_run(source.run_id)
    except Exception as error:
        if not is_lasting(error):
            raise
        return f"{source.name}: its run {source.run_id} no longer exists in MLflow"
    if experiment.lifecycle_stage == "deleted":
        return (
            f"{source.name}: its experiment {experiment.name!r} is deleted in MLflow; to restore it: "
            f"mlflow experiments restore -x {source.experiment_id}"
        )
    if parent.info.lifecycle_stage == "deleted":
        return (
            f"{source.name}: its run is deleted in MLflow; to restore it: mlflow runs restore --run-id {source.run_id}"
        )
    return ""


def _rows_of_directory(source: Source, deleted: str, record: Record) -> list[dict[str, Any]]:
    """Return the rows of a sweep that MLflow has deleted, from its directory. Raises UserError unless that is whole."""
    rows = local_rows(source)
    if rows is None:
        raise UserError(deleted)
    record.note(f"{deleted} (this report was made from {source.paths.root if source.paths else source.name})")
    record.local.add(source.name)
    record.descriptions[source.name] = str(source.lock.get("description", ""))
    _note_unfinished(source, "FINISHED", rows, record)
    return [{**row, "sweep": source.name} for row in rows]


def _note_deleted(source: Source, there: set[str], record: Record) -> None:
    """Note the trials whose runs were deleted in MLflow: `status` still counts them."""
    missing = {number: run for number, run in known_runs(source).items() if run not in there}
    if missing:
        numbers = ", ".join(map(str, list(missing)[:5])) + (", ..." if len(missing) > 5 else "")
        record.note(
            f"{source.name}: {number_of(len(missing), 'trial')} ({numbers}) left out: deleted in MLflow; "
            f"to restore: mlflow runs restore --run-id {next(iter(missing.values()))}"
        )


def _one_per_trial(rows: list[dict[str, Any]], name: str, record: Record) -> list[dict[str, Any]]:
    """Keep one run per trial, the one with the most samples: a scheduler that dies between creating a run and recording
    its id leaves a second run."""
    rank = {"complete": 0, "pruned": 1, "failed": 2}
    best: dict[Any, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (rank.get(row["state"], 3), -(row["_start"] or 0))):
        best.setdefault(row["run_id"] if row["trial"] is None else row["trial"], row)
    if len(best) < len(rows):
        record.note(f"{name}: {len(rows) - len(best)} runs repeat a trial's number: the one that got furthest counts")
    return list(best.values())


def _note_unfinished(source: Source, status: str, rows: Sequence[dict[str, Any]], record: Record) -> None:
    from saebench.runs.holder import holder

    unfinished = sum(row["state"] in ("running", "interrupted", "planned") for row in rows)
    them = number_of(unfinished, "trial")
    if unfinished or status != "FINISHED":
        record.unfinished.add(source.name)
    if source.paths is not None and holder(source.paths):
        record.note(f"{source.name}: still running; this is what it has so far ({them} under way)")
    elif status == "RUNNING" and source.paths is None:
        record.note(f"{source.name}: not ended ({them} under way); this is what it has so far")
    elif status == "RUNNING" or unfinished:
        record.note(f"{source.name}: was left with {them} unfinished; run the same command to resume it")
    if not rows:
        record.note(f"{source.name}: no trials yet")


def _note_missing(frame: DataFrame, record: Record) -> None:
    """Note complete trials without a finite value: they are counted as complete, but left out of comparisons."""
    import numpy as np

    complete = frame[frame["state"] == "complete"]
    for key in dict.fromkeys((record.objective, "eval/fvu", "eval/l0")):
        there = np.isfinite(complete[key].astype(float)) if key in complete.columns else np.zeros(len(complete), bool)
        if missing := int((~there).sum()):
            record.note(
                f"{missing} of {len(complete)} complete trials have no finite {key}: they are left out of comparisons"
            )
