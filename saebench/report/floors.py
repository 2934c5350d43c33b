"""Floors: scores without training on the same test texts, as the sweeps have measured them (floors.json)."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError
from saebench.metrics import METRICS, PROBED_LATENTS, TEST
from saebench.report import artifacts, statistics
from saebench.report.comparison import LEVEL
from saebench.report.controls import is_control
from saebench.report.judge import label
from saebench.report.points import FINAL, arms, cells
from saebench.report.sources import Source
from saebench.report.table import Column, Row, Table, decimals, make
from saebench.runs import files
from saebench.runs.paths import FLOORS

if TYPE_CHECKING:
    from pandas import DataFrame

NAMES = {
    "pca": "principal components",
    "data": "data rows",
    "kmeans": "k-means centres",
    "random": "random directions",
}
"""Names of the floors; all but the first are dictionaries whose codes come from matching pursuit."""
COMPARED = ("fvu", "knn_overlap_at_10", "probing_auc_k5")
"""Metrics in which arms are compared with their floors."""
"""Number of latents of the probe."""
Size = tuple[str, int, int]
"""sweep, k, dict_size."""


class Floors:
    """The floors of some sweeps, by size."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(rows)
        self._by_size: dict[Size, list[Row]] = {}
        for row in self.rows:
            self._by_size.setdefault((row["sweep"], row["k"], row["dict_size"]), []).append(row)

    def best(self, sweep: str, level: float, width: float, metric: str) -> tuple[str, float] | None:
        """The floor that is best in `metric` at a size, and its value; None if none was measured."""
        if not (math.isfinite(level) and math.isfinite(width)):
            return None
        size = (sweep, max(1, round(level)), round(width))
        there = {str(row["floor"]): row[metric] for row in self._by_size.get(size, ()) if metric in row}
        if not there:
            return None
        name = (max if METRICS[metric].direction == "maximize" else min)(there, key=there.__getitem__)
        return name, there[name]


def read(sources: Iterable[Source]) -> Floors:
    """Return the floors in the sweeps' directories; for a sweep without them, those in MLflow."""
    return Floors([row for source in sources for row in _rows(source.name, _content(source))])


def _content(source: Source) -> Any:
    try:
        if source.paths is not None:
            return files.read_object(source.paths.floors)
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory() as folder:
            try:
                file = artifacts.download(source, source.run_id, FLOORS, Path(folder))
            except (MlflowException, UserError):
                return None
            return files.read_object(file)
    except (OSError, files.DamagedError):
        return None


def _rows(sweep: str, content: Any) -> list[Row]:
    """Return a row per complete floor: sweep, floor, k, dict_size, finite values by the metric's name, left_out."""
    found = content.get("floors") if isinstance(content, dict) else None
    rows = []
    for floor in found if isinstance(found, list) else ():
        if not (isinstance(floor, dict) and isinstance(floor.get("values"), dict) and floor.get("floor") in NAMES):
            continue
        if type(floor.get("k")) is not int or type(floor.get("dict_size")) is not int:
            continue
        values = {str(key).removeprefix(TEST): value for key, value in floor["values"].items()}
        numbers = {k: float(v) for k, v in values.items() if isinstance(v, int | float) and math.isfinite(v)}
        left_out = floor.get("left_out")
        why = "; ".join(f"{k}: {v}" for k, v in left_out.items()) if isinstance(left_out, dict) else ""
        own = {"sweep": sweep, "floor": floor["floor"], "k": floor["k"], "dict_size": floor["dict_size"]}
        rows.append(numbers | own | {"left_out": why})
    return rows


def table(floors: Floors) -> Table:
    """A row per size and floor."""
    columns = [
        Column("sweep", "sweep", drop=3), Column("k", "k"), Column("dict_size", "latents"),
        Column("floor", "floor", lambda row: NAMES[row["floor"]]), Column("fvu", "FVU", decimals("fvu", 4)),
        Column("cosine", "cosine", decimals("cosine", 4), drop=2),
        Column("knn_overlap_at_10", label("knn_overlap_at_10"), decimals("knn_overlap_at_10", 4)),
        *(
            Column(key, f"AUC k={k}", decimals(key, 3), drop=k != 5)
            for k, key in ((k, f"probing_auc_k{k}") for k in PROBED_LATENTS)
        ),
        Column("left_out", "not measured", lambda row: row["left_out"], drop=1),
    ]  # fmt: skip
    note = (
        "Scores without training, on the same test texts at the same k: k principal components, and k picks by "
        "matching pursuit among data rows, k-means centres and random directions. Their codes may be negative."
    )
    rows = sorted(
        floors.rows, key=lambda row: (row["sweep"], row["dict_size"], row["k"], list(NAMES).index(row["floor"]))
    )
    return make("floors", "Floors", rows, columns, note if rows else "None were measured.")


def beside(floors: Floors, trials: DataFrame) -> Row:
    """Return name and FVU of the best floor, for a row of `strata`."""
    first = trials.iloc[0]
    found = floors.best(str(first["sweep"]), float(first["level"]), float(first["dict_size"]), "fvu")
    return {"floor": found[0] if found else "", "floor_fvu": found[1] if found else math.nan}


def sentence(floors: Floors, frame: DataFrame, best: DataFrame) -> str:
    """Return the sentence on the number of strata in which an arm is certainly better than the best floor, per metric;
    without controls."""
    if not floors.rows:
        return "No floors were measured: the scores without training are unknown."
    found = {arm: counts for arm, counts in beaten(floors, frame, best).items() if not is_control(arm)}
    said: dict[str, list[str]] = {}
    for metric in COMPARED:
        mine = {arm: counts[metric] for arm, counts in found.items() if metric in counts}
        if mine:
            said.setdefault(who(mine), []).append(label(metric))
    if not said:
        return "Floors were measured, but not at the sizes of these arms."
    parts = "; ".join(f"in {' and '.join(names)}: {who}" for who, names in said.items())
    return f"Certainly better than every floor (score without training) {parts}."


def who(counts: Mapping[str, tuple[int, int]]) -> str:
    """For example topk in 1 of 2 strata, batchtopk in 2 of 2; every arm in all strata; no arm."""
    if all(above == of for above, of in counts.values()):
        return f"{'every arm' if len(counts) > 1 else next(iter(counts))} in all strata"
    if not any(above for above, _ in counts.values()):
        return "no arm"
    first, *rest = (f"{arm} in {above} of {of}" for arm, (above, of) in counts.items())
    return ", ".join([f"{first} strata", *rest])


def beaten(floors: Floors, frame: DataFrame, best: DataFrame) -> Mapping[str, Mapping[str, tuple[int, int]]]:
    """Return {arm: {metric: (strata in which the arm is certainly better than the best floor, strata with a floor)}}.

    Certainly: the t interval over its seeds excludes the floor, after Holm's correction over the arm's strata.
    """
    p_values: dict[tuple[str, str], list[float]] = {}
    for (_, arm, level, width), trials in cells(best):
        for metric in COMPARED:
            floor = floors.best(str(trials["sweep"].iloc[0]), float(level), float(width), metric)
            key = f"{FINAL}{metric}"
            if floor is not None and key in trials.columns and trials[key].notna().any():
                values = trials[key].dropna().astype(float).to_numpy() - floor[1]
                worse = values if METRICS[metric].direction == "minimize" else -values
                interval = statistics.over_seeds(worse)
                p = float(interval.p) if interval.mean < 0 and math.isfinite(float(interval.p)) else 1.0
                p_values.setdefault((str(arm), metric), []).append(p)
    found: dict[str, dict[str, tuple[int, int]]] = {arm: {} for arm in arms(frame)}
    for (arm, metric), p_of_strata in p_values.items():
        above = int((statistics.holm(p_of_strata) <= LEVEL).sum())
        found[arm][metric] = (above, len(p_of_strata))
    return found
