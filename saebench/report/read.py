"""MLflow -> one tidy DataFrame, a row per trial; learning curves and per-example evaluations only on demand."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.config import SPARSITY_PARAMETERS
from saebench.errors import UserError
from saebench.report.sources import Source, connect, pages, speaking_to

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

FIRST = ("sweep", "trial", "state", "reason", "type", "stratum", "point", "seed")
"""Columns every frame begins with, whatever the trials have."""
_STATUS = {"FINISHED": "complete", "FAILED": "failed", "KILLED": "pruned", "RUNNING": "running", "SCHEDULED": "planned"}
_BIGGEST = 1.797e308
"""MLflow stores infinity as the largest float."""
_AT_ONCE = 8
"""Requests to the tracking server at a time."""


@dataclass
class Record:
    """What a report rests on: the trials of one or several sweeps, and what was wrong with the reading."""

    frame: DataFrame
    sources: tuple[Source, ...] = ()
    notes: list[str] = field(default_factory=list)
    """One line each: unfinished sweeps, runs that were not understood, files that are not there."""

    @property
    def objective(self) -> str:
        return self.sources[0].search("objective", "eval/fvu") if self.sources else "eval/fvu"

    @property
    def maximize(self) -> bool:
        return bool(self.sources) and self.sources[0].search("direction", "minimize") == "maximize"

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


def read(sources: Sequence[Source]) -> Record:
    """All trials of these sweeps. Raises PreflightError when a tracking server cannot be read."""
    record, rows = Record(to_frame([]), tuple(sources)), []
    for source in sources:
        rows += _rows(source, record)
    record.frame = to_frame(rows)
    _say_missing(record.frame, record)
    if len({(s.search("objective", "eval/fvu"), s.search("direction", "minimize")) for s in sources}) > 1:
        record.note(f"the sweeps have different objectives; points are chosen by {record.objective}")
    return record


def _rows(source: Source, record: Record) -> list[dict[str, Any]]:
    client = connect(source.uri)
    with speaking_to(source.uri):
        parent = client.get_run(source.run_id)
        wanted = f"tags.`mlflow.parentRunId` = '{source.run_id}'"
        query = {"experiment_ids": [source.experiment_id], "filter_string": wanted, "max_results": 1000}
        runs = list(pages(client.search_runs, **query))
    ours = [run for run in runs if run.data.tags.get("saebench.kind") == "trial"]
    if len(ours) < len(runs):
        record.note(f"{source.name}: {len(runs) - len(ours)} runs under this sweep are not saebench's: left out")
    rows = _one_per_trial([_row(run) for run in ours], source.name, record)
    _say_unfinished(source, parent.info.status, rows, record)
    return [{**row, "sweep": source.name} for row in rows]


def _one_per_trial(rows: list[dict[str, Any]], name: str, record: Record) -> list[dict[str, Any]]:
    """A scheduler that died between creating a run and remembering it leaves two: the one that got further counts."""
    rank = {"complete": 0, "pruned": 1, "failed": 2}
    best: dict[Any, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (rank.get(row["state"], 3), -(row["_start"] or 0))):
        best.setdefault(row["run_id"] if row["trial"] is None else row["trial"], row)
    if len(best) < len(rows):
        record.note(f"{name}: {len(rows) - len(best)} runs repeat a trial's number: the one that got furthest counts")
    return list(best.values())


def _say_unfinished(source: Source, status: str, rows: Sequence[dict[str, Any]], record: Record) -> None:
    from saebench.lock import holder

    unfinished = sum(row["state"] in ("running", "interrupted", "planned") for row in rows)
    if source.paths is not None and holder(source.paths):
        record.note(f"{source.name}: still running; this is what it has so far ({unfinished} trials under way)")
    elif status == "RUNNING" and source.paths is None:
        record.note(f"{source.name}: not ended ({unfinished} trials under way); this is what it has so far")
    elif status == "RUNNING" or unfinished:
        record.note(f"{source.name}: was left with {unfinished} trials unfinished; the same command resumes it")
    if not rows:
        record.note(f"{source.name}: no trials yet")


def _say_missing(frame: DataFrame, record: Record) -> None:
    """Complete trials without a usable value are counted everywhere and compared nowhere."""
    import numpy as np

    complete = frame[frame["state"] == "complete"]
    for key in dict.fromkeys((record.objective, "eval/fvu", "eval/l0")):
        there = np.isfinite(complete[key].astype(float)) if key in complete.columns else np.zeros(len(complete), bool)
        if missing := int((~there).sum()):
            record.note(f"{missing} of {len(complete)} complete trials have no finite {key}: they enter no comparison")


def _row(run: Any) -> dict[str, Any]:
    info, data = run.info, run.data
    return row_of(info.run_id, data.tags, data.params, data.metrics, info.start_time, info.end_time, info.status)


def row_of(
    run_id: str,
    tags: dict[str, str],
    params: dict[str, str],
    metrics: dict[str, float],
    start: int | None = None,
    end: int | None = None,
    status: str = "FINISHED",
) -> dict[str, Any]:
    """One MLflow run as a row; tags win over params, a parameter that reads as a number is one."""
    row: dict[str, Any] = {key: _number(value) for key, value in params.items()}
    number, seed = tags.get("saebench.trial", ""), tags.get("saebench.seed", params.get("seed", ""))
    row |= {
        "sweep": tags.get("saebench.sweep", ""),
        "trial": int(number) if number.isdigit() else None,
        "state": tags.get("saebench.state") or _STATUS.get(status, status.lower()),
        "reason": tags.get("saebench.reason", ""),
        "type": tags.get("saebench.type") or params.get("type", ""),
        "stratum": tags.get("saebench.stratum", ""),
        "point": tags.get("saebench.point", ""),
        "seed": int(seed) if seed.isdigit() else None,
        "attempt": _number(tags.get("saebench.attempt", "1")),
        "duration_s": (end - start) / 1000 if start and end else None,
        "run_id": run_id,
        "verdict": _json(tags.get("saebench.verdict", "")),
        "failure": tags.get("saebench.failure", ""),
        "_start": start,
    }
    not_finite = _json(tags.get("saebench.nonfinite", ""))  # what MLflow holds of these is of an earlier mark
    return row | {key: _finite(value) for key, value in metrics.items()} | dict.fromkeys(not_finite, math.nan)


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text.lower(), text)


def _finite(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) >= _BIGGEST else value


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def to_frame(rows: Sequence[dict[str, Any]]) -> DataFrame:
    """Rows as a frame: identity first, then parameters, metrics, and the rest; sorted by sweep and trial."""
    import pandas as pd

    last = ("failure", "attempt", "duration_s", "run_id", "verdict")
    keys = dict.fromkeys(key for row in rows for key in row if not key.startswith("_"))
    sparsity = [name for names in SPARSITY_PARAMETERS.values() for name in names]
    first = [*FIRST, *dict.fromkeys([name for name in sparsity if name in keys]), "dict_size", "lr"]
    middle = [key for key in keys if key not in first and key not in last]
    columns = list(dict.fromkeys([*first, *sorted(middle, key=lambda key: "/" in key), *last]))
    frame = pd.DataFrame([{key: row.get(key) for key in columns} for row in rows], columns=columns)
    for key in ("trial", "seed"):
        frame[key] = frame[key].astype("Int64")
    for key in ("dict_size", "lr", *(key for key in columns if "/" in key)):
        frame[key] = pd.to_numeric(frame[key], errors="coerce")
    return frame.sort_values(["sweep", "trial"], kind="stable", ignore_index=True)


# --- on demand -------------------------------------------------------------------------------------------------------


def histories(record: Record, runs: Iterable[tuple[str, str]], key: str) -> dict[str, list[tuple[int, float]]]:
    """{run id: [(examples, value), ...]} of one metric, for (sweep, run id) pairs; many requests at a time."""
    wanted = list(runs)
    found: dict[str, list[tuple[int, float]]] = {}
    for source in record.sources:
        mine = [run for sweep, run in wanted if sweep == source.name]
        if not mine:
            continue
        client = connect(source.uri)
        with speaking_to(source.uri), ThreadPoolExecutor(_AT_ONCE) as pool:
            for run, points in zip(mine, pool.map(client.get_metric_history, mine, repeat(key)), strict=True):
                found[run] = sorted({p.step: _finite(p.value) for p in points}.items())
    return found


def evaluations(record: Record, trials: DataFrame) -> dict[str, dict[str, np.ndarray]]:
    """{run id: arrays of the trial's evaluation.safetensors}; from the sweep's directory, else from MLflow's artifacts.
    What cannot be had is left out and noted."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for source in record.sources:
        away = []
        for number, run in _of(source, trials, "trial", "run_id"):
            local = source.paths.trial(int(number)).evaluation if source.paths and number == number else None
            arrays = _arrays(local) if local else None
            if arrays is None:
                away.append(run)
            else:
                found[run] = arrays
        found |= _downloaded(source, away)
    if missing := len(trials) - len(found):
        record.note(
            f"{missing} of {len(trials)} trials have no evaluation.safetensors any more (neither on disk nor as an "
            "artifact): they are missing from densities, L0 distributions and intervals over texts"
        )
    return found


def _of(source: Source, trials: DataFrame, *keys: str) -> list[tuple[Any, ...]]:
    """These columns of the source's trials; a number that is not there is NaN."""
    mine = trials.loc[trials["sweep"] == source.name, list(keys)]
    return list(mine.astype({"trial": float}).itertuples(index=False, name=None))


def _arrays(path: Path) -> dict[str, np.ndarray] | None:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError):
        return None


def _downloaded(source: Source, runs: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
    """Evaluations of these runs that are artifacts, many requests at a time."""
    if not runs:
        return {}
    try:
        client = connect(source.uri)
    except UserError:  # it answered a moment ago, and the rest of the report is there
        return {}

    def fetch(run: str) -> dict[str, np.ndarray] | None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                return _arrays(artifact(client, run, "evaluation.safetensors", Path(folder)))
            except (MlflowException, requests.RequestException, UserError, OSError):
                return None

    import requests
    from mlflow.exceptions import MlflowException

    with speaking_to(source.uri), ThreadPoolExecutor(_AT_ONCE) as pool:
        return {run: arrays for run, arrays in zip(runs, pool.map(fetch, runs), strict=True) if arrays is not None}


def download(source: Source, run_id: str, name: str, to: Path) -> Path:
    """An artifact of a trial; UserError in one line where it is gone."""
    client = connect(source.uri)
    with speaking_to(source.uri):
        return artifact(client, run_id, name, to)


def artifact(client: Any, run_id: str, name: str, to: Path) -> Path:
    """A file or folder of a run, at its root or one folder below, written into `to`; UserError where it is gone."""
    there = client.list_artifacts(run_id)
    paths = [item.path for item in there]
    if name not in paths:
        paths += [inner.path for item in there if item.is_dir for inner in client.list_artifacts(run_id, item.path)]
    path = next((path for path in paths if Path(path).name == name), None)
    if path is None:
        raise UserError(f"run {run_id}: no artifact {name}")
    return Path(client.download_artifacts(run_id, path, str(to)))
