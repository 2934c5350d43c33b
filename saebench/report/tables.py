"""Tables of strata, of the best points and of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saebench.report import statistics
from saebench.report.columns import ARM, COUNTS, FVU_MEAN, GROUP, LEVEL, WIDTH, best_trial
from saebench.report.comparison import FVU
from saebench.report.floors import Floors, beside
from saebench.report.points import cells, usable
from saebench.report.table import Column, Row, Table, counted, decimals, make, number_of, percentage

if TYPE_CHECKING:
    from pandas import DataFrame


def strata(frame: DataFrame, best: DataFrame, floors: Floors) -> Table:
    """Return a row per arm, sparsity and width: its best point over seeds, the best floor, and the numbers of
    trials."""
    rows = []
    for key, trials in cells(frame):
        group, arm, level, width = key
        mine = best.loc[best.index.intersection(trials.index)]
        rows.append(
            {"group": group, "arm": arm, "level_name": trials["level_name"].iloc[0], "level": level, "dict_size": width}
            | {"stratum": trials["stratum"].iloc[0], "point": mine["point"].iloc[0] if len(mine) else None}
            | {"chosen_by": mine["chosen_by"].iloc[0] if len(mine) else "no complete trial"}
            | over_seeds(mine)
            | beside(floors, trials)
            | {"points": trials["point"].nunique()}
            | counted(trials["state"])
        )
    columns = [
        GROUP, ARM, LEVEL, WIDTH, Column("seeds", "seeds", drop=1), FVU_MEAN,
        Column("floor_fvu", "best floor", decimals("floor_fvu", 4)), Column("floor", "by", drop=4),
        Column("fvu_std", "std", decimals("fvu_std", 4), drop=3), Column("l0", "L0", decimals("l0", 1)),
        Column("explained_variance", "expl. var.", decimals("explained_variance", 4), drop=4),
        Column("dead_fraction", "dead", lambda r: percentage(r["dead_fraction"]), drop=2), COUNTS,
        Column("chosen_by", "point chosen as", drop=5),
    ]  # fmt: skip
    note = (
        "Best point of each stratum on test texts: mean, standard deviation and t interval over its seeds. "
        "best floor: the least FVU without training at the same size (--table floors). "
        "c/p/f: trials that are complete, pruned and failed, and (+n) unfinished ones."
    )
    return make("strata", "Strata", rows, columns, note)


def over_seeds(trials: DataFrame) -> Row:
    """Return mean, std and 95% interval of FVU over these trials' seeds, and the means of the other columns."""
    fvu: Any = trials.loc[usable(trials, FVU), FVU].astype(float).to_numpy() if len(trials) else []
    interval = statistics.over_seeds(fvu)
    row = {"seeds": len(fvu), "fvu": float(interval.mean), "fvu_std": float(interval.sd)}
    row |= {"fvu_low": float(interval.low), "fvu_high": float(interval.high)}
    for key in ("l0", "explained_variance", "dead_fraction", "cosine", "knn_overlap_at_10", "mse"):
        value = trials[f"final/{key}"].mean() if len(trials) and f"final/{key}" in trials.columns else math.nan
        row[key] = float(value)
    return row


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return which points (L0, FVU) are on the Pareto front; NaN never is."""
    return [
        x == x and y == y and not any((u <= x and v <= y) and (u < x or v < y) for u, v in points) for x, y in points
    ]


def pareto(table: Table) -> Table:
    """Return the strata whose best point is on the Pareto front."""
    rows = []
    all_rows = table.rows()
    for group in dict.fromkeys(row["group"] for row in all_rows):
        mine = [row for row in all_rows if row["group"] == group and row["seeds"]]
        front = on_front([(row["l0"], row["fvu"]) for row in mine])
        rows += sorted((row for row, on in zip(mine, front, strict=True) if on), key=lambda row: row["l0"])
    columns = [c for c in table.columns if c.key != "chosen_by"]
    complete = sum(bool(row["seeds"]) for row in all_rows)
    note = f"Of {number_of(complete, 'stratum', 'strata')} with a complete trial, those that no other beats."
    return make("pareto", "Pareto front of L0 and FVU", rows, columns, note)


def best(frame: DataFrame, chosen: DataFrame, searched: Sequence[str], objective: str, maximize: bool) -> Table:
    """Per arm and sparsity the best width and point, with its parameters and its best trial."""
    rows = []
    for (group, arm, level), trials in chosen.groupby(["group", "arm", "level"], sort=False, dropna=False):
        widths = [mine for _, mine in trials.groupby("dict_size", sort=False, dropna=False)]
        mine = (max if maximize else min)(widths, key=lambda width: float(width[objective].mean()))
        tried = frame[(frame["group"] == group) & (frame["arm"] == arm) & (frame["level"] == level)]
        same = frame[(frame["sweep"].isin(mine["sweep"])) & (frame["stratum"].isin(mine["stratum"]))]
        same = same[same["point"].isin(mine["point"]) & usable(same, objective)]  # the search seed's trial, too
        top = same.sort_values(objective, ascending=not maximize).iloc[0]
        rows.append(
            {"group": group, "arm": arm, "level_name": top["level_name"], "level": level, "dict_size": top["dict_size"]}
            | {key: top[key] for key in searched}
            | over_seeds(mine)
            | {"objective": float(mine[objective].mean()), "sweep": top["sweep"], "best_trial": int(top["trial"])}
            | counted(tried["state"])
        )
    shown = [Column(key, key) for key in searched]
    columns = [
        GROUP, ARM, LEVEL, WIDTH, *shown, FVU_MEAN, Column("l0", "L0", decimals("l0", 1)),
        Column("seeds", "seeds", drop=1), Column("best_trial", "best trial", best_trial), COUNTS,
    ]  # fmt: skip
    return make("best", "Best per arm and sparsity", rows, columns, f"By {objective}, mean over seeds.")


def seeds(frame: DataFrame, searched: Sequence[str]) -> Table:
    """A row per point that was trained with more than one seed."""
    rows = []
    for _, trials in cells(frame):
        for point, mine in trials.groupby("point", sort=False):
            if mine["seed"].nunique() > 1:
                first = mine.iloc[0]
                fvu = mine[usable(mine, FVU)]
                values = dict(zip(fvu["seed"].astype(int), fvu[FVU], strict=True)) if len(fvu) else {}
                rows.append(
                    {"group": first["group"], "arm": first["arm"], "level_name": first["level_name"]}
                    | {"level": first["level"], "dict_size": first["dict_size"], "point": point}
                    | {key: first[key] for key in searched}
                    | over_seeds(fvu)
                    | {"values": ", ".join(f"{seed}: {value:.4f}" for seed, value in sorted(values.items()))}
                    | counted(mine["state"])
                )
    columns = [
        GROUP, ARM, LEVEL, WIDTH, *(Column(key, key) for key in searched), Column("seeds", "seeds"),
        FVU_MEAN, Column("fvu_std", "std", decimals("fvu_std", 4), drop=2), Column("values", "FVU by seed"), COUNTS,
    ]  # fmt: skip
    return make("seeds", "Seeds", rows, columns, "Every point that was trained with more than one seed.")
