"""Data that a report reads only on demand: learning curves, and evaluations per text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import TYPE_CHECKING, Any

from saebench.report import artifacts, wire
from saebench.report.local import local_points
from saebench.report.record import Record
from saebench.report.rows import finite
from saebench.report.sources import Source
from saebench.tracking.mlflow_errors import reading
from saebench.tracking.server import open_reader

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

_AT_ONCE = 8
"""Requests to the tracking server at a time."""


def histories(record: Record, runs: Iterable[tuple[str, str]], key: str) -> dict[str, list[tuple[int, float]]]:
    """Return {run id: [(examples, value), ...]} of one metric, for (sweep, run id) pairs."""
    wanted = list(runs)
    found: dict[str, list[tuple[int, float]]] = {}
    for source in record.sources:
        mine = [run for sweep, run in wanted if sweep == source.name]
        if mine:
            local = source.name in record.local
            points = local_points(source, mine, key) if local else _points(source.uri, mine, key)
            found |= {run: sorted({step: finite(value) for step, value in points[run]}.items()) for run in mine}
    return found


def _points(uri: str, runs: Sequence[str], key: str) -> dict[str, wire.Points]:
    """Return every point, unchanged; fetch a hundred runs per request if the store is a server that supports it."""
    client = open_reader(uri)
    with reading(uri):
        found = wire.histories(uri, runs, key, _AT_ONCE) if wire.is_server(uri) else {}
        left = [run for run in runs if run not in found]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            asked = pool.map(client.get_metric_history, left, repeat(key))
            return found | {run: [(p.step, p.value) for p in points] for run, points in zip(left, asked, strict=True)}


def evaluations(record: Record, trials: DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """Return {run id: arrays of the trial's evaluation.safetensors}, from the sweep's directory, else from MLflow's
    artifacts. Files that are missing or unreadable are left out and noted."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for source in record.sources:
        away = {}
        for number, run in _of(source, trials, "trial", "run_id"):
            local = source.paths.trial(int(number)).evaluation if source.paths and number == number else None
            arrays = artifacts.arrays(local) if local else None
            if arrays is None:
                away[run] = record.places.get(run, "")
            else:
                found[run] = arrays
        if source.name not in record.local:
            found |= artifacts.evaluations(source, away, _AT_ONCE)
    if missing := len(trials) - len(found):
        record.note(
            f"evaluation.safetensors of {missing} of {len(trials)} trials is missing, on disk and as an artifact: "
            "these "
            "trials are not in densities, L0 distributions and intervals over texts"
        )
    return found


def _of(source: Source, trials: DataFrame, *keys: str) -> list[tuple[Any, ...]]:
    """Return these columns of the source's trials; a missing number is NaN."""
    mine = trials.loc[trials["sweep"] == source.name, list(keys)]
    return list(mine.astype({"trial": float}).itertuples(index=False, name=None))
