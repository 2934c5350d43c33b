"""The report as a whole: read once, every table and chart computed on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError
from saebench.report import effects, embedding, floors, nested, points, tables, trial_tables, verdict_tables
from saebench.report.about import about
from saebench.report.checks import Check, checks
from saebench.report.compare import compare
from saebench.report.comparison import Comparison
from saebench.report.details import evaluations, histories
from saebench.report.floors import Floors
from saebench.report.judge import Judged, judge
from saebench.report.paragraph import paragraph
from saebench.report.read import read
from saebench.report.record import Record
from saebench.report.search_error import Cell, CellSearch, cell_searches
from saebench.report.sources import find
from saebench.report.stability import stability
from saebench.report.table import Row, Table, counted, number_of, trial_counts
from saebench.report.text_interval import runs_of
from saebench.report.texts import texts
from saebench.report.verdict import sentence

if TYPE_CHECKING:
    import numpy as np
    from pandas import DataFrame

CURVES = 300
"""Most trials whose learning curves are fetched: the chosen ones first."""


class Report:
    """The data that `saebench report` prints, writes and draws."""

    def __init__(self, record: Record, where: Sequence[str] = ()) -> None:
        self.record: Record = record
        self.where = tuple(where)
        self.frame: DataFrame = keep(points.annotate(record.frame), where)

    @property
    def name(self) -> str:
        """Names of the sweeps."""
        return " + ".join(dict.fromkeys([*(s.name for s in self.record.sources), *self.frame["sweep"]])) or "no sweep"

    @property
    def counts(self) -> str:
        """How the trials ended, in words."""
        return f"{number_of(len(self.frame), 'trial')}: {trial_counts(counted(self.frame['state']))}"

    @property
    def about(self) -> list[str]:
        """The sweeps' descriptions, then data, budget and seeds: a line each."""
        return about(self.record.descriptions, self.frame)

    @cached_property
    def searched(self) -> list[str]:
        return effects.searched(self.frame)

    @cached_property
    def chosen(self) -> DataFrame:
        return points.chosen(self.frame, self.record.objective, self.record.maximize)

    @cached_property
    def floors(self) -> Floors:
        """Scores without training, if the sweeps have measured them."""
        return floors.read(self.record.sources)

    @cached_property
    def by_level(self) -> tuple[DataFrame, DataFrame]:
        """`frame` and `chosen`, with a row for every level that a trial serves."""
        return nested.with_levels(self.frame), nested.with_levels(self.chosen)

    @cached_property
    def strata(self) -> Table:
        table = tables.strata(*self.by_level, self.floors)
        return replace(table, note=f"{table.note} {nested.note(self.by_level[1])}".rstrip())

    @cached_property
    def evaluations(self) -> dict[str, dict[str, np.ndarray]]:
        """evaluation.safetensors of the chosen trials, by run id."""
        return evaluations(self.record, self.chosen)

    @property
    def tested(self) -> bool:
        """Whether every chosen trial is measured on a test part."""
        return "test/fvu" in self.chosen.columns and bool(self.chosen["test/fvu"].notna().all())

    @property
    def progress(self) -> str:
        """Progress of the sweeps; empty if they have ended."""
        if not self.record.unfinished & set(self.frame["sweep"]):
            return ""
        ended = int(self.frame["state"].isin(["complete", "pruned", "failed"]).sum())
        under_way = len(self.frame) - ended
        rest = f"{under_way} under way or interrupted" if under_way else "more are due"
        return f"{number_of(ended, 'trial')} ended, {rest}"

    @property
    def primary(self) -> list[str]:
        """The primary metrics (`eval.primary`)."""
        return self.record.primary

    @cached_property
    def searches(self) -> dict[Cell, CellSearch]:
        """The search error of every cell."""
        return nested.with_searches(cell_searches(self.frame, self.chosen, self.record.objective), self.by_level[1])

    @cached_property
    def judged(self) -> list[Judged]:
        """Every pair of arms in every metric."""
        found = compare(*self.by_level, self.searches, self.progress)
        wanted = runs_of(found)
        evaluations = {run: held for run, held in self.evaluations.items() if run in wanted}
        stable = [] if self.progress else self._stable
        return judge(found, self.frame, self.searches, evaluations, self.primary, self.record.margin, stable)

    @cached_property
    def _stable(self) -> list[Row]:
        """Stability of the best points that is cached or takes seconds."""
        return stability(self.record, self.frame, self.chosen, quick=True)

    @property
    def comparisons(self) -> list[Comparison]:
        """Every pair of arms in FVU, with intervals over seeds and over texts."""
        return [found["fvu"] for found in self.judged]

    @property
    def sentences(self) -> list[str]:
        """Return the verdicts in FVU, or the reason why no pair of arms has one."""
        return [sentence(c) for c in self.comparisons] or [self.verdict]

    @cached_property
    def verdict(self) -> str:
        """The report in a paragraph."""
        if self.judged:
            return f"{paragraph(self.judged, self.primary)}{self._above_floors()}"
        arms = points.arms(self.frame)
        return f"One arm ({arms[0]}): nothing to compare." if arms else "No trials: nothing to compare."

    def _above_floors(self) -> str:
        """The verdict's sentence on floors; none while the sweep runs, and for sweeps without a test part."""
        if self.progress or not self.tested:
            return ""
        return f" {floors.sentence(self.floors, self.frame, self.chosen)}"

    @cached_property
    def checks(self) -> list[Check]:
        """The checks, failed ones first."""
        return checks(self)

    @cached_property
    def chosen_curves(self) -> DataFrame:
        """Learning curves of the chosen trials: `run_id`, `samples`, `value` of the objective."""
        return self._curves(self.chosen.head(CURVES))

    @cached_property
    def curves(self) -> DataFrame:
        """Learning curves: `run_id`, `samples`, `value` of the objective; at most CURVES trials, the chosen first."""
        import pandas as pd

        rest = self.frame[~self.frame["run_id"].isin(self.chosen["run_id"]) & (self.frame["state"] != "planned")]
        wanted = pd.concat([self.chosen, rest]).head(CURVES)
        if len(rest) + len(self.chosen) > CURVES:
            self.record.note(
                f"learning curves of {CURVES} of {len(rest) + len(self.chosen)} trials, chosen points first"
            )
        return self._curves(wanted)

    def _curves(self, wanted: DataFrame) -> DataFrame:
        import pandas as pd

        runs = zip(wanted["sweep"], wanted["run_id"], strict=True)
        rows = [
            (run, samples, value)
            for run, curve in histories(self.record, runs, self.record.objective).items()
            for samples, value in curve
        ]
        return pd.DataFrame(rows, columns=["run_id", "samples", "value"])

    @cached_property
    def stability(self) -> Table:
        """Stability of every point with several seeds; takes seconds per pair of seeds, and downloads missing SAEs from
        MLflow."""
        return embedding.stability(stability(self.record, self.frame, self.chosen, quick=False))

    @cached_property
    def quick_stability(self) -> Table:
        """Stability of the best points that is cached or takes seconds."""
        return embedding.stability(self._stable)

    def table(self, name: str, *, quick: bool = False) -> Table:
        """Return one of TABLES; `quick`: without slow parts, which a note lists."""
        return self.quick_stability if quick and name == "stability" else TABLES[name](self)


TABLES: dict[str, Callable[[Report], Table]] = {
    "metrics": lambda r: verdict_tables.metrics(r.judged),
    "verdict": lambda r: verdict_tables.verdicts(r.comparisons),
    "strata": lambda r: r.strata,
    "arms": lambda r: verdict_tables.arms(r.frame, r.comparisons),
    "pareto": lambda r: tables.pareto(r.strata),
    "best": lambda r: tables.best(r.frame, r.chosen, r.searched, r.record.objective, r.record.maximize),
    "floors": lambda r: floors.table(r.floors),
    "fidelity": lambda r: embedding.fidelity(r.frame, r.chosen),
    "probing": lambda r: embedding.probing(r.frame, r.chosen),
    "stability": lambda r: r.stability,
    "texts": lambda r: texts(r.record.sources),
    "seeds": lambda r: tables.seeds(r.frame, r.searched),
    "effects": lambda r: effects.effects(r.frame, r.searched, r.record.objective, r.record.maximize),
    "importances": lambda r: effects.importances(r.record, r.frame),
    "lost": lambda r: trial_tables.lost(r.frame),
    "trials": lambda r: trial_tables.trials(r.frame),
}
"""Name -> table, in the order of a document."""


def load(
    *sweeps: str | Path, runs_dir: str | Path | None = None, tracking_uri: str | None = None, where: Sequence[str] = ()
) -> Report:
    """The report of these sweeps (names or directories; none: the newest), restricted to the trials that `where`
    selects."""
    return Report(read(find(sweeps, runs_dir, tracking_uri)), where)


def keep(frame: DataFrame, where: Sequence[str]) -> DataFrame:
    """Return the rows that match every KEY=VALUE; a key is a column (type, k, lr, state, seed, arm, data.model,
    ...)."""
    for condition in where:
        key, equals, value = condition.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--where {condition}: not KEY=VALUE")
        if key not in frame.columns:
            raise UserError(f"--where {condition}: no column {key!r} ({_columns_like(key, list(frame.columns))})")
        frame = frame[[_equal(cell, value.strip()) for cell in frame[key]]]
    return frame


def _columns_like(key: str, columns: Sequence[str]) -> str:
    """Return similar names; if there are none, all columns except the many metrics."""
    if near := get_close_matches(key, columns, 3):
        return f"did you mean {' or '.join(near)}?"
    return f"there are: {', '.join(c for c in columns if '/' not in c)}, and the metrics"


def _equal(cell: Any, text: str) -> bool:
    """Compare as numbers if both are numbers, else as text."""
    try:
        return float(cell) == float(text)
    except (TypeError, ValueError):
        return str(cell) == text
