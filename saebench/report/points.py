"""The role of a trial in comparisons: its arm's label, its cell (arm, sparsity level, width), and the best point of a
cell."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.config import SAE_CONFIGS
from saebench.runs import choice
from saebench.runs.choice import Tried

if TYPE_CHECKING:
    from pandas import DataFrame, Series

CELL = ("group", "arm", "level", "dict_size")
"""Columns that name a cell; `annotate` adds group, arm, level and level_name."""
IDENTITY = {"sweep", "trial", "state", "reason", "type", "stratum", "point", "seed", "dict_size", "d_in", "failure",
            "attempt", "duration_s", "run_id", "verdict", "group", "arm", "level", "level_name", "role", "choice",
            "search_error", "control"}  # fmt: skip
"""Columns that are not searchable parameters."""
FINAL = "final/"
"""Prefix of the columns that tables and verdict read: `test/...`; `eval/...` for trials of sweeps made before there was
a test part."""
NEEDED = ("fvu", "l0", "dead_fraction", "explained_variance")
"""Metrics that tables and charts need."""
CONTROLS = {
    "frozen_decoder": "frozen decoder",
    "frozen_encoder": "frozen encoder",
    "soft_decoder": "soft-frozen decoder",
}
"""Names of controls in labels of arms."""
_SAME_FOR_ALL = ("samples", "eval_every")
"""Besides data.*: trials that differ in these answer different questions and are never paired."""


def annotate(frame: DataFrame) -> DataFrame:
    """The frame with `arm` (label), `level` and `level_name` (sparsity), `group` (same data and budget); metrics that
    no trial has become columns of NaN."""
    frame = frame.copy()
    frame["seed"] = frame["seed"].fillna(-1)
    frame = _with_final(frame)
    named = [_sparsity(row) for row in frame.to_dict("records")]
    frame["level_name"] = [name for name, _ in named]
    frame["level"] = np.array([value for _, value in named], dtype=float)
    frame["group"] = _groups(frame)
    frame["arm"] = _labels(frame)
    return frame


def _with_final(frame: DataFrame) -> DataFrame:
    """Add `final/NAME` for every metric that a trial has."""
    import pandas as pd

    tested = frame["test/fvu"].notna() if "test/fvu" in frame.columns else pd.Series(False, frame.index)
    names = dict.fromkeys(
        [*NEEDED, *(key.partition("/")[2] for key in frame.columns if key.startswith(("eval/", "test/")))]
    )
    nothing = pd.Series(np.nan, frame.index)
    columns = {}
    for name in names:
        test, validation = (frame[k].astype(float) if (k := f"{part}/{name}") in frame.columns else nothing
                            for part in ("test", "eval"))  # fmt: skip
        columns[f"{FINAL}{name}"] = test.where(tested, validation)
    return pd.concat([frame, pd.DataFrame(columns, index=frame.index)], axis=1)


def _sparsity(row: dict[Hashable, Any]) -> tuple[str, float]:
    config = SAE_CONFIGS.get(row["type"])
    for name in config.sparsity if config else ("k", "target_l0"):
        value = row.get(name)
        if isinstance(value, int | float) and value == value:
            return name, float(value)
    return "", np.nan


def _groups(frame: DataFrame) -> list[str]:
    """Return "" if all trials share data and budget; else the names of the sweeps that do, and a number if they are
    ambiguous."""
    keys = [key for key in frame.columns if key.startswith("data.") or key in _SAME_FOR_ALL]
    same = [tuple(str(value) for value in row) for row in frame[keys].itertuples(index=False)]
    kinds = list(dict.fromkeys(same))
    if len(kinds) <= 1:
        return [""] * len(frame)
    sweeps = {kind: "+".join(dict.fromkeys(frame["sweep"][[s == kind for s in same]])) for kind in kinds}
    repeated = {name for name in sweeps.values() if list(sweeps.values()).count(name) > 1}
    names = {k: f"{name} #{i}" if name in repeated else name for i, (k, name) in enumerate(sweeps.items(), 1)}
    return [names[kind] for kind in same]


def _labels(frame: DataFrame) -> list[str]:
    """Return the type, with the parameters in which arms of one type differ, and the sweep if several have the type."""
    kinds = frame["type"].astype(str)
    if "control" in frame.columns:
        said = frame["control"].map(lambda value: CONTROLS.get(value, ""))
        kinds = kinds.where(said == "", kinds + " (" + said + ")")
    labels = kinds.to_dict()
    for (sweep, kind), arms in frame.groupby([frame["sweep"], kinds], sort=False):
        where = f" @{sweep}" if frame.loc[kinds == kind, "sweep"].nunique() > 1 else ""
        suffixes = _suffixes(arms)
        labels |= {i: f"{kind}{suffixes.get(stratum, '')}{where}" for i, stratum in arms["stratum"].items()}
    return [labels[i] for i in frame.index]


def _suffixes(trials: DataFrame) -> dict[str, str]:
    """Return {stratum: " key=value ..."} if several strata of a type have the same sparsity and width, else {}."""
    cells = trials.groupby(["level", "dict_size"], dropna=False)["stratum"]
    if cells.nunique().max() <= 1:
        return {}
    telling = [key for key in trials.columns if _tells_apart(trials, key)]
    if telling:
        first = trials.groupby("stratum", sort=False).head(1).set_index("stratum")[telling]
        return {str(s): "".join(f" {key}={_short(row[key])}" for key in telling) for s, row in first.iterrows()}
    order: dict[str, str] = {}
    for _, names in cells:
        order |= {name: f" #{i}" for i, name in enumerate(dict.fromkeys(names), 1)}
    return order


def _tells_apart(trials: DataFrame, key: str) -> bool:
    """A parameter with one value per stratum that differs between strata of the same sparsity and width."""
    sparsity = {name for config in SAE_CONFIGS.values() for name in config.sparsity}
    if key in IDENTITY | sparsity or "/" in key or key.startswith("data."):
        return False
    text = trials[key].astype(str)
    if text.nunique() == 1 or text.groupby(trials["stratum"]).nunique().max() > 1:
        return False
    return bool(text.groupby([trials["level"], trials["dict_size"]], dropna=False).nunique().max() > 1)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def arms(frame: DataFrame) -> list[str]:
    """Labels in the order in which the sweep first ran them."""
    return list(dict.fromkeys(frame["arm"]))


def cells(frame: DataFrame) -> Iterator[tuple[Any, DataFrame]]:
    """Trials by cell, arms in their order, then width, then sparsity."""
    order = {arm: i for i, arm in enumerate(arms(frame))}
    ranked = frame.assign(_rank=frame["arm"].map(order)).sort_values(
        ["group", "_rank", "dict_size", "level", "sweep", "trial"], kind="stable"
    )
    yield from ranked.drop(columns="_rank").groupby(list(CELL), sort=False, dropna=False)


def usable(trials: DataFrame, metric: str) -> Series[bool]:
    """Complete trials that have a finite value of `metric`."""
    if metric not in trials.columns:
        return trials["state"] == "never"
    return (trials["state"] == "complete") & np.isfinite(trials[metric].astype(float))


def choose(trials: DataFrame, seeds: set[int], objective: str, maximize: bool) -> tuple[DataFrame, str]:
    """Return the complete trials that measure the best point of one cell (runs/choice.py), and how it was chosen."""
    there = trials[usable(trials, objective)]
    rows = there.reindex(columns=["point", "seed", objective, "role", "choice"]).itertuples(index=False)
    tried = [Tried(str(p), int(s), float(v), str(r), int(c)) for p, s, v, r, c in rows]
    found = choice.choose(tried, seeds, maximize=maximize)
    mine = there.iloc[list(found.trials)]
    one = trials["point"].nunique() == 1
    if found.by == "compare":
        about = mine["search_error"].iloc[-1] or {}
        count = f"{about.get('drawn', '?')} drawn, {about.get('refined', 0)} refined"
        return mine, f"chosen by the search seed ({count})"
    if found.by == "search":
        return mine, f"best of {found.among} so far, by the search seed alone"
    if found.by == "nothing" or one:
        return mine, "only point" if len(mine) else "no complete trial"
    if found.among == 1:
        return mine, "only one with all seeds" if found.by == "all seeds" else "only complete one"
    best = f"best mean of {len(seeds)} seeds" if len(seeds) > 1 else "best"
    how = best if found.by == "all seeds" else f"best at seed {min(trial.seed for trial in tried)}"
    return mine, f"{how}, of {found.among} points"


def chosen(frame: DataFrame, objective: str, maximize: bool) -> DataFrame:
    """Complete trials of the best point of every cell, with `chosen_by`."""
    import pandas as pd

    parts = []
    for _, trials in cells(frame):
        best, how = choose(trials, _seeds(frame, trials), objective, maximize)
        parts.append(best.assign(chosen_by=how))
    return pd.concat(parts) if parts else frame.head(0).assign(chosen_by="")


def _seeds(frame: DataFrame, trials: DataFrame) -> set[int]:
    """The seeds of the sweeps that these trials belong to."""
    return set(frame.loc[frame["sweep"].isin(set(trials["sweep"])), "seed"].dropna())
