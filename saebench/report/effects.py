"""Effects of the searched parameters: marginal effects within strata, and Optuna's importances."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from saebench.report.points import CELL, IDENTITY, usable
from saebench.report.table import Column, Row, Table, counted, make, plain, trial_counts

if TYPE_CHECKING:
    from pandas import DataFrame, Series

    from saebench.report.record import Record

_LEVELS = 4
"""Numbers with more distinct values are shown in thirds."""
_MIN_TRIALS = 8
"""Complete trials of an arm below which importances are noise."""


def searched(frame: DataFrame) -> list[str]:
    """Parameters that differ between points of the same cell."""
    keys = [k for k in frame.columns if k not in IDENTITY and "/" not in k and not k.startswith("data.")]
    cells = frame.groupby(list(CELL), dropna=False)
    return [key for key in keys if cells[key].nunique().max() > 1] if len(frame) else []


def effects(frame: DataFrame, params: list[str], objective: str, maximize: bool) -> Table:
    """Per arm, parameter and level: the median relative distance of a trial from the best of its stratum."""
    first = frame[frame["seed"] == frame.groupby("sweep")["seed"].transform("min")]
    worse = _worse_than_best(first, objective, maximize)
    rows: list[Row] = []
    for (group, arm), trials in first.groupby(["group", "arm"], sort=False):
        for param in params:
            if trials[param].nunique() > 1:
                for level, mine in _by_level(trials[param]):
                    median = worse.loc[mine].median()
                    row = {
                        "group": group,
                        "arm": arm,
                        "parameter": param,
                        "value": level,
                        "worse_percent": 100 * median,
                    }
                    rows.append(
                        row | {"usable": int(worse.loc[mine].notna().sum())} | counted(trials.loc[mine, "state"])
                    )
    columns = [
        Column("group", "data"), Column("arm", "arm"), Column("parameter", "parameter"), Column("value", "value"),
        Column("worse_percent", f"{objective} worse than best", lambda r: _percent(r["worse_percent"])),
        Column("complete", "trials", trial_counts),
    ]  # fmt: skip
    note = "Trials of the first seed; median relative distance of complete trials from the best of their own stratum."
    return make("effects", "Hyperparameter effects", rows, columns, note)


def _percent(value: float) -> str:
    return f"{value:.1f}%" if math.isfinite(value) else "-"


def _worse_than_best(trials: DataFrame, objective: str, maximize: bool) -> Series[Any]:
    """Relative distance from the best complete trial of the cell; NaN for trials that are not complete."""
    value = (
        trials[objective].where(usable(trials, objective)) if objective in trials.columns else trials["lr"] * math.nan
    )
    cells = value.groupby([trials[key] for key in CELL], dropna=False)
    best = cells.transform("max" if maximize else "min")
    return (value - best).abs() / best.abs()


def _by_level(values: Series[Any]) -> Iterator[tuple[str, Any]]:
    """(level in words, index of its trials): each value, or thirds of many numbers."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    if values.nunique() <= _LEVELS or numbers.isna().any():
        for value, mine in values.groupby(values, sort=True):
            yield plain(value), mine.index
    else:
        for _, mine in numbers.groupby(pd.qcut(numbers, 3, duplicates="drop"), observed=True):
            yield f"{mine.min():.3g} to {mine.max():.3g}", mine.index


def importances(record: Record, frame: DataFrame) -> Table:
    """Optuna's fANOVA importances, from the sweeps' own journals: one study per arm, in which every stratum's values
    are relative to its best, so that sparsity and width do not dominate the searched parameters."""
    rows: list[Row] = []
    labels = {(s, t): a for s, t, a in zip(frame["sweep"], frame["stratum"], frame["arm"], strict=True)}
    for source in record.sources:
        if source.paths is None or not source.paths.journal.is_file():
            record.note(f"{source.name}: optuna.journal is not on this machine: no importances")
            continue
        try:
            arms = _by_arm(str(source.paths.journal), source.name, labels)
        except (OSError, ValueError, KeyError) as error:
            record.note(f"{source.name}: optuna.journal cannot be read ({error}): no importances")
            continue
        for arm, trials in arms.items():
            rows += [{"arm": arm, "sweep": source.name, "trials": len(trials)} | row for row in _importance(trials)]
    columns = [Column("arm", "arm"), Column("parameter", "parameter"),
               Column("importance", "importance", lambda r: f"{r['importance']:.2f}"),
               Column("trials", "complete trials")]  # fmt: skip
    note = f"Share of the variance inside strata (fANOVA); an arm needs {_MIN_TRIALS} complete trials."
    return make("importances", "Hyperparameter importances", rows, columns, note)


def _by_arm(journal: str, sweep: str, labels: dict[tuple[str, str], str]) -> dict[str, list[Any]]:
    """Arm -> complete trials of the search studies (not of the replicates), values relative to the stratum's best."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(journal))
    arms: dict[str, list[Any]] = {}
    for name in optuna.get_all_study_names(storage):
        arm = labels.get((sweep, name.removeprefix(f"{sweep}/")))
        if arm is not None:
            study = optuna.load_study(study_name=name, storage=storage)
            trials = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
            values = {t.number: t.value for t in trials if t.value is not None and math.isfinite(t.value)}
            best = (max if study.direction.name == "MAXIMIZE" else min)(values.values(), default=0.0)
            arms.setdefault(arm, []).extend(
                (t.params, t.distributions, abs(values[t.number] - best) / abs(best))
                for t in trials
                if t.number in values and best
            )
    return arms


def _importance(trials: list[Any]) -> Iterator[Row]:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    if len(trials) < _MIN_TRIALS or len({value for *_, value in trials}) < 2:
        return
    study = optuna.create_study()
    study.add_trials([optuna.create_trial(params=p, distributions=d, value=v) for p, d, v in trials])
    try:
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (ValueError, RuntimeError):  # what was searched differs between the strata of this arm
        return
    for parameter, importance in found.items():
        yield {"parameter": parameter, "importance": importance}
