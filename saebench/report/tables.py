"""The tables of a report, each from the trials, the chosen points or the comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from saebench.report import statistics
from saebench.report.compare import FVU, L0, Comparison, Stratum
from saebench.report.floors import Floors, beside
from saebench.report.judge import Judged, label
from saebench.report.points import cells, usable
from saebench.report.table import (
    Column,
    Row,
    Table,
    counted,
    decimals,
    make,
    missing,
    number_of,
    p_value,
    percentage,
    plus_minus,
    short_counts,
    signed_span,
    trial_counts,
)
from saebench.report.verdict import (
    difference_text,
    interval_text,
    margin_text,
    percent,
    sentence,
    value_of,
    what_would_decide,
)

if TYPE_CHECKING:
    from pandas import DataFrame

COUNTS = Column("complete", "c/p/f", short_counts)


def sparsity(row: Row) -> str:
    """For example k=32."""
    return f"{row['level_name']}={row['level']:g}" if row.get("level_name") else "-"


_GROUP, _ARM = Column("group", "data"), Column("arm", "arm")
_LEVEL, _WIDTH = Column("level", "sparsity", sparsity), Column("dict_size", "latents")


FVU_MEAN = Column("fvu", "FVU ± 95%", plus_minus("fvu", "fvu_high"))


# --- strata ----------------------------------------------------------------------------------------------------------


def strata(frame: DataFrame, best: DataFrame, floors: Floors) -> Table:
    """A row per arm, sparsity and width: its best point over seeds, the best floor, and all that was tried."""
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
        _GROUP, _ARM, _LEVEL, _WIDTH, Column("seeds", "seeds", spare=1), FVU_MEAN,
        Column("floor_fvu", "best floor", decimals("floor_fvu", 4)), Column("floor", "by", spare=4),
        Column("fvu_std", "std", decimals("fvu_std", 4), spare=3), Column("l0", "L0", decimals("l0", 1)),
        Column("explained_variance", "expl. var.", decimals("explained_variance", 4), spare=4),
        Column("dead_fraction", "dead", lambda r: percentage(r["dead_fraction"]), spare=2), COUNTS,
        Column("chosen_by", "point chosen as", spare=5),
    ]  # fmt: skip
    note = (
        "Best point of each stratum on test texts: mean, standard deviation and t interval over its seeds. "
        "best floor: the least FVU without training at the same size (--table floors). "
        "c/p/f: trials that are complete, pruned and failed, and (+n) unfinished ones."
    )
    return make("strata", "Strata", rows, columns, note)


def over_seeds(trials: DataFrame) -> Row:
    """Mean, std and 95% interval of FVU over these trials' seeds, and the means of what stands beside it."""
    fvu: Any = trials.loc[usable(trials, FVU), FVU].astype(float).to_numpy() if len(trials) else []
    interval = statistics.over_seeds(fvu)
    row = {"seeds": len(fvu), "fvu": float(interval.mean), "fvu_std": float(interval.sd)}
    row |= {"fvu_low": float(interval.low), "fvu_high": float(interval.high)}
    for key in ("l0", "explained_variance", "dead_fraction", "cosine", "knn_overlap_at_10", "mse"):
        value = trials[f"final/{key}"].mean() if len(trials) and f"final/{key}" in trials.columns else math.nan
        row[key] = float(value)
    return row


difference = signed_span("low_percent", "high_percent", "difference_percent")


# --- metrics ----------------------------------------------------------------------------------------------------------


OUTCOMES = {
    "better": "better",
    "worse": "worse",
    "equal": "equal within {margin}",
    "small": "too little to matter",
    "same": "the same",
    "undecided": "undecided",
    "so far": "so far",
    "not compared": "not compared",
}


def metrics(judged: Sequence[Judged]) -> Table:
    """A row per pair of arms and metric: what the data say of the first arm against the second."""
    rows = [_metric_row(c) for found in judged for c in found.values()]
    columns = [
        _GROUP, Column("pair", "arms"), Column("metric", "metric", lambda r: label(r["metric"])),
        Column("said", "outcome"), Column("difference", "difference, 95% CI", lambda r: r["difference_text"]),
        Column("p_holm", "p (Holm)", lambda r: p_value(r["p_holm"]), spare=2), Column("seeds", "seeds", spare=3),
        Column("would_decide", "what would decide it", spare=4),
    ]  # fmt: skip
    note = (
        "Of the first arm against the second, at equal L0, over seeds that did not choose, search error included. "
        "Holm's correction is over all pairs in the primary metrics, and over all pairs in the others."
    )
    return make("metrics", "Verdict by metric", rows, columns, note)


def _metric_row(c: Comparison) -> Row:
    interval = f" ({interval_text(c)})" if math.isfinite(c.low) else ""
    return {
        "group": c.group, "pair": f"{c.a} vs {c.b}", "a": c.a, "b": c.b, "metric": c.metric, "outcome": c.outcome,
        "said": OUTCOMES[c.outcome].format(margin=margin_text(c)),
        "difference_text": f"{difference_text(c, c.mean)}{interval}" if math.isfinite(c.mean) else "-",
        "difference": value_of(c, c.mean), "low": min(value_of(c, c.low), value_of(c, c.high)),
        "high": max(value_of(c, c.low), value_of(c, c.high)), "search_error": c.search, "p": c.p, "p_holm": c.p_pairs,
        "seeds": c.seeds, "strata": len(c.strata),
        "would_decide": what_would_decide(c) if c.outcome == "undecided" else "",
    }  # fmt: skip


# --- arms ------------------------------------------------------------------------------------------------------------


def verdicts(comparisons: Sequence[Comparison]) -> Table:
    """A row per pair of arms: the sentence and its numbers."""
    rows = [
        {
            "verdict": sentence(c), "a": c.a, "b": c.b, "group": c.group, "decided": c.decided,
            "difference_percent": percent(c.mean), "low_percent": percent(c.low), "high_percent": percent(c.high),
            "text_low_percent": percent(c.text_low), "text_high_percent": percent(c.text_high), "texts": c.texts,
            "p": c.p, "p_holm_over_pairs": c.p_pairs, "seeds": c.seeds, "seeds_needed": c.needed,
            "strata": len(c.strata), "strata_a_lower": c.lower, "sign_test_p": c.sign_p,
            "interpolated": c.interpolated, "left_out": "; ".join(c.left_out),
        }
        for c in comparisons
    ]  # fmt: skip
    columns = [
        _GROUP, Column("a", "arm"), Column("b", "against"),
        Column("difference_percent", "FVU, 95% CI over seeds", difference),
        Column("text_low_percent", "95% over texts", signed_span("text_low_percent", "text_high_percent")),
        Column("p", "p", lambda r: p_value(r["p"])),
        Column("p_holm_over_pairs", "p (Holm, pairs)", lambda r: p_value(r["p_holm_over_pairs"])),
        Column("strata_a_lower", "lower in", lambda r: f"{r['strata_a_lower']} of {r['strata']}"),
        Column("sign_test_p", "sign test p", lambda r: p_value(r["sign_test_p"])), Column("seeds", "seeds"),
        Column("seeds_needed", "seeds needed"), Column("interpolated", "interpolated strata"),
        Column("left_out", "left out"),
    ]  # fmt: skip
    note = "FVU: relative difference of the first arm from the second, mean over strata; below 0 the first is better."
    return make("verdict", "Verdicts in numbers", rows, columns, note)


def arms(frame: DataFrame, comparisons: Sequence[Comparison]) -> Table:
    """A row per pair of arms and stratum: both FVUs at the same L0 and their paired difference."""
    rows = [_side_by_side(frame, c, s) for c in comparisons for s in c.strata]
    columns = [
        _GROUP, Column("pair", "arms"), _LEVEL, _WIDTH, Column("l0", "at L0", decimals("l0", 1), spare=1),
        Column("fvu_a", "FVU first", decimals("fvu_a", 4), spare=3), Column("trials_a", "c/p/f first"),
        Column("fvu_b", "FVU second", decimals("fvu_b", 4), spare=3), Column("trials_b", "c/p/f second"),
        Column("difference_percent", "difference, 95% CI", difference),
        Column("text_low_percent", "95% over texts", signed_span("text_low_percent", "text_high_percent"), spare=4),
        Column("p_holm", "p (Holm)", lambda r: p_value(r["p_holm"]), spare=2), Column("seeds", "seeds"),
        Column("l0_matched", "L0", spare=2),
    ]  # fmt: skip
    note = (
        "Difference: of the first arm's FVU from the second's; below 0 the first is better. Paired over seeds; Holm's "
        "correction is over the strata of a pair. Arms whose L0 differs by more than 5% are interpolated along log L0 "
        "inside their common range, never extrapolated."
    )
    return make("arms", "Arms side by side at equal L0", rows, columns, note)


def _side_by_side(frame: DataFrame, c: Comparison, s: Stratum) -> Row:
    logs = _logs(frame, s)
    row: Row = {"group": c.group, "a": c.a, "b": c.b, "pair": f"{c.a} vs {c.b}", "level_name": s.level_name}
    row |= {"level": s.level, "dict_size": s.dict_size, "l0": s.l0}
    row |= {"fvu_a": math.exp(logs[0]), "fvu_b": math.exp(logs[1])}
    row |= {"difference_percent": percent(s.mean), "low_percent": percent(s.low), "high_percent": percent(s.high)}
    row |= {"text_low_percent": percent(s.text_low), "text_high_percent": percent(s.text_high)}
    row |= {"log_ratio": s.mean, "p": s.p, "p_holm": s.p_holm, "seeds": len(s.pairs)}
    row |= {"l0_difference_percent": percent(s.l0_gap)}
    row["l0_matched"] = f"{'first' if s.base == c.b else 'second'} interpolated" if s.interpolated else "as measured"
    for arm, key in ((c.a, "trials_a"), (c.b, "trials_b")):
        mine = frame[(frame["arm"] == arm) & (frame["group"] == c.group) & (frame["dict_size"] == s.dict_size)]
        level = (s.level_name, s.level) if arm == s.base else s.counterpart
        if level is not None:
            mine = mine[(mine["level_name"] == level[0]) & (mine["level"] == level[1])]
        row[key] = short_counts(counted(mine["state"]))
    return row


def _logs(frame: DataFrame, s: Stratum) -> tuple[float, float]:
    """Mean log FVU of both arms over the pairs: positive weights are the first arm's, negative the second's."""
    fvu = dict(zip(frame["run_id"], frame[FVU], strict=True))
    first = second = 0.0
    for pair in s.pairs.values():
        positive = sum(w * math.log(fvu[run]) for run, w in pair.weights.items() if w > 0)
        first += positive / len(s.pairs)
        second += (positive - pair.difference) / len(s.pairs)
    return first, second


# --- fronts and bests ------------------------------------------------------------------------------------------------


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which (L0, FVU) no other point beats in one without losing in the other; NaN is never on the front."""
    return [
        x == x and y == y and not any((u <= x and v <= y) and (u < x or v < y) for u, v in points) for x, y in points
    ]


def pareto(table: Table) -> Table:
    """The strata whose best point no other reaches with less of both L0 and FVU."""
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
        _GROUP, _ARM, _LEVEL, _WIDTH, *shown, FVU_MEAN, Column("l0", "L0", decimals("l0", 1)),
        Column("seeds", "seeds", spare=1), Column("best_trial", "best trial", best_trial), COUNTS,
    ]  # fmt: skip
    return make("best", "Best per arm and sparsity", rows, columns, f"By {objective}, mean over seeds.")


def best_trial(row: Row) -> str:
    """For example demo/7, as `saebench export` takes it."""
    return f"{row['sweep']}/{row['best_trial']}"


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
        _GROUP, _ARM, _LEVEL, _WIDTH, *(Column(key, key) for key in searched), Column("seeds", "seeds"),
        FVU_MEAN, Column("fvu_std", "std", decimals("fvu_std", 4), spare=2), Column("values", "FVU by seed"), COUNTS,
    ]  # fmt: skip
    return make("seeds", "Seeds", rows, columns, "Every point that was trained with more than one seed.")


# --- trials ----------------------------------------------------------------------------------------------------------


def lost(frame: DataFrame) -> Table:
    """A row per trial that was pruned, failed or is unfinished, with the reason and the numbers of the verdict."""
    rows = []
    for row in frame[frame["state"] != "complete"].to_dict("records"):
        verdict = row["verdict"] or {}
        kept = {k: row[k] for k in ("sweep", "trial", "state", "arm", "level_name", "level", "dict_size", "seed", "lr")}
        numbers = {key: verdict.get(key) for key in ("value", "threshold", "rung", "peers", "pruner")}
        rows.append(kept | {"reason": row["reason"]} | numbers)
    columns = [
        Column("trial", "trial", trial_name), Column("state", "state"), _ARM, _LEVEL, _WIDTH,
        Column("seed", "seed", spare=1), Column("lr", "lr", spare=1), Column("reason", "reason"),
        Column("value", "value"), Column("threshold", "limit"), Column("rung", "at example"),
        Column("peers", "peers", spare=2), Column("pruner", "pruner", spare=2),
    ]  # fmt: skip
    return make("lost", "Pruned, failed and unfinished trials", rows, columns, trial_counts(counted(frame["state"])))


def trial_name(row: Row) -> str:
    """For example demo/7, as `saebench export` takes it."""
    return f"{row['sweep']}/{row['trial']}" if not missing(row["trial"]) else "-"


def trials(frame: DataFrame) -> Table:
    """A row per trial."""
    columns = (
        Column("trial", "trial", trial_name), Column("state", "state"), _ARM, _LEVEL, _WIDTH, Column("seed", "seed"),
        Column("lr", "lr"), Column(FVU, "FVU", decimals(FVU, 4)), Column(L0, "L0", decimals(L0, 1)),
        Column("final/explained_variance", "expl. var.", decimals("final/explained_variance", 4), spare=4),
        Column("final/mse", "MSE", spare=3), Column("final/dead_features", "dead latents"),
        Column("duration_s", "seconds", spare=2),
    )  # fmt: skip
    there = tuple(column for column in columns if column.key in frame.columns)
    return Table("trials", "Trials", frame, there, trial_counts(counted(frame["state"])))
