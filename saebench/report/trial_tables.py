"""Tables of trials: all of them, and those that are not complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saebench.report.columns import ARM, LEVEL, WIDTH, trial_name
from saebench.report.comparison import FVU, L0
from saebench.report.table import Column, Table, counted, decimals, make, trial_counts

if TYPE_CHECKING:
    from pandas import DataFrame


def lost(frame: DataFrame) -> Table:
    """A row per trial that was pruned, failed or is unfinished, with the reason and the numbers of the verdict."""
    rows = []
    for row in frame[frame["state"] != "complete"].to_dict("records"):
        verdict = row["verdict"] or {}
        kept = {k: row[k] for k in ("sweep", "trial", "state", "arm", "level_name", "level", "dict_size", "seed", "lr")}
        numbers = {key: verdict.get(key) for key in ("value", "threshold", "rung", "peers", "pruner")}
        rows.append(kept | {"reason": row["reason"]} | numbers)
    columns = [
        Column("trial", "trial", trial_name), Column("state", "state"), ARM, LEVEL, WIDTH,
        Column("seed", "seed", drop=1), Column("lr", "lr", drop=1), Column("reason", "reason"),
        Column("value", "value"), Column("threshold", "limit"), Column("rung", "at example"),
        Column("peers", "peers", drop=2), Column("pruner", "pruner", drop=2),
    ]  # fmt: skip
    return make("lost", "Pruned, failed and unfinished trials", rows, columns, trial_counts(counted(frame["state"])))


def trials(frame: DataFrame) -> Table:
    """A row per trial."""
    columns = (
        Column("trial", "trial", trial_name), Column("state", "state"), ARM, LEVEL, WIDTH, Column("seed", "seed"),
        Column("lr", "lr"), Column(FVU, "FVU", decimals(FVU, 4)), Column(L0, "L0", decimals(L0, 1)),
        Column("final/explained_variance", "expl. var.", decimals("final/explained_variance", 4), drop=4),
        Column("final/mse", "MSE", drop=3), Column("final/dead_features", "dead latents"),
        Column("duration_s", "seconds", drop=2),
    )  # fmt: skip
    there = tuple(column for column in columns if column.key in frame.columns)
    return Table("trials", "Trials", frame, there, trial_counts(counted(frame["state"])))
