"""One SAE that serves several numbers of latents fills the row of each: `fvu_at/K` of a trial as a stratum of its own.

Such a row has an FVU and an L0 on the trial's own test part and nothing else: no other metric was measured there, and
nothing per text. A level has no such row if the arm was trained at it, or if no other arm was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from saebench.report.points import FINAL
from saebench.report.search_error import Cell, CellSearch

if TYPE_CHECKING:
    from pandas import DataFrame

AT = f"{FINAL}fvu_at/"


def with_levels(frame: DataFrame) -> DataFrame:
    """Return `frame` followed by the rows that trials fill beside their own; these have `nested_in`, the level of the
    trial, and an index and a run id of their own. The same `frame` if there are none."""
    import pandas as pd

    levels = [int(key.removeprefix(AT)) for key in frame.columns if key.startswith(AT)]
    found = [rows for k in levels for rows in [_at(frame, k)] if len(rows)]
    return pd.concat([frame, *found]) if found else frame


def _at(frame: DataFrame, k: int) -> DataFrame:
    import pandas as pd

    level, fvu = frame["level"].astype(float), frame[f"{AT}{k}"].astype(float)
    there = frame[level == k]
    mine = frame[
        np.isfinite(fvu) & (level > k) & ~frame["arm"].isin(there["arm"]) & frame["group"].isin(there["group"])
    ]
    columns: dict[str, Any] = dict.fromkeys([key for key in frame.columns if "/" in key], np.nan)
    columns |= {f"{FINAL}fvu": fvu[mine.index], f"{FINAL}explained_variance": 1 - fvu[mine.index]}
    columns |= {f"{FINAL}l0": mine[f"{FINAL}l0_at/{k}"].astype(float), "level": float(k), "nested_in": mine["level"]}
    columns |= {name: [f"{value}@{k}" for value in mine[name]] for name in ("stratum", "run_id")}
    if "chosen_by" in frame.columns:
        columns["chosen_by"] = [f"its trials at k={own:g}" for own in mine["level"]]
    own = pd.DataFrame(columns, index=mine.index)  # joined at once: column by column, pandas warns of hundreds
    rows = pd.concat([mine[mine.columns.difference(own.columns, sort=False)], own], axis=1)
    rows.index = [f"{place}@{k}" for place in mine.index]
    return rows


def with_searches(searches: Mapping[Cell, CellSearch], frame: DataFrame) -> dict[Cell, CellSearch]:
    """Return `searches` and, for the rows that `with_levels` added, the search error at the trial's own level, since no
    search was made for these levels."""
    found = dict(searches)
    if "nested_in" in frame.columns:
        rows = frame.loc[frame["nested_in"].notna(), ["group", "arm", "level", "dict_size", "nested_in"]]
        for group, arm, level, width, own in rows.drop_duplicates().itertuples(index=False, name=None):
            if (group, arm, own, width) in searches:
                found[group, arm, level, width] = replace(searches[group, arm, own, width])
    return found


def note(frame: DataFrame) -> str:
    """Say whose rows are of trials at another level; "" if there are none."""
    if "nested_in" not in frame.columns:
        return ""
    rows = frame[frame["nested_in"].notna()]
    said = []
    for (arm, own), mine in rows.groupby(["arm", "nested_in"], sort=False):
        levels = ", ".join(f"{level:g}" for level in sorted(mine["level"].unique()))
        said.append(f"{arm} at k = {levels}: the same trials as at k = {own:g}, used with fewer latents.")
    return " ".join(said)
