"""MLflow -> one tidy DataFrame, a row per trial; learning curves and per-example evaluations only on demand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import repeat
from typing import TYPE_CHECKING, Any

from saebench.config import SAE_CONFIGS
from saebench.errors import UserError
from saebench.metrics import METRICS
from saebench.report import artifacts, wire
from saebench.report.sources import Source, known_runs, pages
from saebench.report.table import number_of
from saebench.runs.tags import Tag
from saebench.tracking.server import open_reader, reading

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

FIRST = ("sweep", "trial", "state", "reason", "type", "stratum", "point", "seed")
"""Columns with which every frame begins."""
_STATUS = {"FINISHED": "complete", "FAILED": "failed", "KILLED": "pruned", "RUNNING": "running", "SCHEDULED": "planned"}
_BIGGEST = 1.797e308
"""MLflow stores infinity as the largest float."""
_AT_ONCE = 8
"""Requests to the tracking server at a time."""


@dataclass
class Record:
    """The trials of one or several sweeps that a report covers, and notes on what could not be read."""

    frame: DataFrame
    sources: tuple[Source, ...] = ()
    notes: list[str] = field(default_factory=list)
    """One line each: unfinished sweeps, runs that could not be interpreted, missing files."""
    places: dict[str, str] = field(default_factory=dict)
    """Run id -> artifact URI."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """Sweep -> the description in its spec."""
    unfinished: set[str] = field(default_factory=set)
    """Unfinished sweeps: no verdict is reached on them."""

    @property
    def primary(self) -> list[str]:
        """Return the known metrics of `eval.primary`, fvu if there are none."""
        found = self.sources[0].eval("primary") if self.sources else None
        names = [name for name in found if name in METRICS] if isinstance(found, list) else []
        return names or ["fvu"]

    @property
    def margin(self) -> float:
        """Return `eval.margin`, the difference below which two arms count as equivalent."""
        found = self.sources[0].eval("margin") if self.sources else None
        return float(found) if isinstance(found, int | float) and found >= 0 else 0.005

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
    """Return all trials of these sweeps. Raises PreflightError if a tracking server cannot be read."""
    record, rows = Record(to_frame([]), tuple(sources)), []
    for source in sources:
        rows += _rows(source, record)
    record.frame = to_frame(rows)
    _say_missing(record.frame, record)
    if len({(s.search("objective", "eval/fvu"), s.search("direction", "minimize")) for s in sources}) > 1:
        record.note(f"the sweeps have different objectives; points are chosen by {record.objective}")
    return record


def _rows(source: Source, record: Record) -> list[dict[str, Any]]:
    wanted = f"tags.`mlflow.parentRunId` = '{source.run_id}'"
    client = open_reader(source.uri)
    with reading(source.uri):
        parent = client.get_run(source.run_id)
        _refuse_deleted(source, parent, client)
        if wire.is_server(source.uri):
            runs = wire.runs(source.uri, source.experiment_id, wanted, _AT_ONCE)
        else:
            query = {"experiment_ids": [source.experiment_id], "filter_string": wanted, "max_results": 1000}
            runs = [_plain(run) for run in pages(client.search_runs, **query)]
    ours = [run for run in runs if run.tags.get(Tag.KIND) == "trial"]
    if len(ours) < len(runs):
        record.note(f"{source.name}: {len(runs) - len(ours)} runs under this sweep are not saebench's: left out")
    record.places |= {run.id: run.artifacts for run in ours}
    record.descriptions[source.name] = parent.data.tags.get("mlflow.note.content", "")
    rows = [row_of(run.id, run.tags, run.params, run.metrics, run.start, run.end, run.status) for run in ours]
    _say_deleted(source, {run.id for run in runs}, record)
    rows = _one_per_trial(rows, source.name, record)
    _say_unfinished(source, parent.info.status, rows, record)
    return [{**row, "sweep": source.name} for row in rows]


def _plain(run: Any) -> wire.Run:
    info, data = run.info, run.data
    return wire.Run(
        info.run_id, data.tags, data.params, data.metrics,
        info.start_time, info.end_time, info.status, info.artifact_uri,
    )  # fmt: skip


def _refuse_deleted(source: Source, parent: Any, client: Any) -> None:
    """Raise PreflightError if the experiment or the parent run is deleted in MLflow: a search would find no runs."""
    experiment = client.get_experiment(source.experiment_id)
    if experiment.lifecycle_stage == "deleted":
        raise UserError(
            f"{source.name}: its experiment {experiment.name!r} is deleted in MLflow; restore it: "
            f"mlflow experiments restore -x {source.experiment_id}"
        )
    if parent.info.lifecycle_stage == "deleted":
        raise UserError(
            f"{source.name}: its run is deleted in MLflow; restore it: mlflow runs restore --run-id {source.run_id}"
        )


def _say_deleted(source: Source, there: set[str], record: Record) -> None:
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


def _say_unfinished(source: Source, status: str, rows: Sequence[dict[str, Any]], record: Record) -> None:
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
        record.note(f"{source.name}: was left with {them} unfinished; the same command resumes it")
    if not rows:
        record.note(f"{source.name}: no trials yet")


def _say_missing(frame: DataFrame, record: Record) -> None:
    """Note complete trials without a finite value: they are counted as complete, but enter no comparison."""
    import numpy as np

    complete = frame[frame["state"] == "complete"]
    for key in dict.fromkeys((record.objective, "eval/fvu", "eval/l0")):
        there = np.isfinite(complete[key].astype(float)) if key in complete.columns else np.zeros(len(complete), bool)
        if missing := int((~there).sum()):
            record.note(f"{missing} of {len(complete)} complete trials have no finite {key}: they enter no comparison")


def row_of(
    run_id: str,
    tags: dict[str, str],
    params: dict[str, str],
    metrics: dict[str, float],
    start: int | None = None,
    end: int | None = None,
    status: str = "FINISHED",
) -> dict[str, Any]:
    """Return one MLflow run as a row; tags win over params, and a parameter that parses as a number becomes one."""
    row: dict[str, Any] = {key: _number(value) for key, value in params.items()}
    number, seed = tags.get(Tag.TRIAL, ""), tags.get(Tag.SEED, params.get("seed", ""))
    row |= {
        "sweep": tags.get(Tag.SWEEP, ""),
        "trial": int(number) if number.isdigit() else None,
        "state": tags.get(Tag.STATE) or _STATUS.get(status, status.lower()),
        "reason": tags.get(Tag.REASON, ""),
        "type": tags.get(Tag.TYPE) or params.get("type", ""),
        "stratum": tags.get(Tag.STRATUM, ""),
        "point": tags.get(Tag.POINT, ""),
        "seed": int(seed) if seed.isdigit() else None,
        "attempt": _number(tags.get(Tag.ATTEMPT, "1")),
        "duration_s": _duration(tags.get(Tag.SECONDS, ""), start, end),
        "run_id": run_id,
        "verdict": _json(tags.get(Tag.VERDICT, "")),
        "role": tags.get(Tag.ROLE, ""),
        "choice": _number(tags.get(Tag.CHOICE, "0")),
        "search_error": _json(tags.get(Tag.SEARCH_ERROR, "")),
        "failure": tags.get(Tag.FAILURE, ""),
        "_start": start,
    }
    not_finite = _json(tags.get(Tag.NONFINITE, ""))  # MLflow's value of these is from an earlier mark
    return row | {key: _finite(value) for key, value in metrics.items()} | dict.fromkeys(not_finite, math.nan)


def _duration(trained: str, start: int | None, end: int | None) -> float | None:
    """Return the seconds that the trial's attempts ran; for a run recorded without them, those from its start to its
    end, which count the hours between two attempts."""
    with suppress(ValueError):
        return float(trained)
    return (end - start) / 1000 if start and end else None


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
    """Return rows as a frame: identity first, then parameters, metrics and the rest; sorted by sweep and trial."""
    import pandas as pd

    last = ("failure", "attempt", "duration_s", "run_id", "verdict", "role", "choice", "search_error")
    keys = dict.fromkeys(key for row in rows for key in row if not key.startswith("_"))
    sparsity = [name for config in SAE_CONFIGS.values() for name in config.sparsity]
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
    """Return {run id: [(examples, value), ...]} of one metric, for (sweep, run id) pairs."""
    wanted = list(runs)
    found: dict[str, list[tuple[int, float]]] = {}
    for source in record.sources:
        mine = [run for sweep, run in wanted if sweep == source.name]
        if mine:
            points = _points(source.uri, mine, key)
            found |= {run: sorted({step: _finite(value) for step, value in points[run]}.items()) for run in mine}
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
        found |= artifacts.evaluations(source, away, _AT_ONCE)
    if missing := len(trials) - len(found):
        record.note(
            f"{missing} of {len(trials)} trials have no evaluation.safetensors any more (neither on disk nor as an "
            "artifact): they are missing from densities, L0 distributions and intervals over texts"
        )
    return found


def _of(source: Source, trials: DataFrame, *keys: str) -> list[tuple[Any, ...]]:
    """Return these columns of the source's trials; a missing number is NaN."""
    mine = trials.loc[trials["sweep"] == source.name, list(keys)]
    return list(mine.astype({"trial": float}).itertuples(index=False, name=None))
