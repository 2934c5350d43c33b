"""Tables on uses of embeddings: neighbourhoods, classes, and latents that another seed finds, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from saebench.metrics import PROBED_LATENTS
from saebench.report import statistics
from saebench.report.columns import sparsity
from saebench.report.matching import SAME
from saebench.report.points import cells, usable
from saebench.report.table import (
    ENDED,
    Column,
    Row,
    Table,
    counted,
    decimals,
    make,
    missing,
    percentage,
    plus_minus,
    short_counts,
)

if TYPE_CHECKING:
    from pandas import DataFrame

SCORES = {"accuracy": "accuracy", "auc": "AUC"}
BASELINES = {"_raw": "raw dimensions", "_pca": "PCA"}
"""Suffix of a metric's key -> title of its row."""

_WHERE = (
    Column("group", "data"), Column("arm", "arm"), Column("level", "sparsity", sparsity),
    Column("dict_size", "latents"),
)  # fmt: skip


def _trial_counts(row: Row) -> str:
    """A dash for a baseline, which has no trials of its own (and makes floats of the others' counts)."""
    if missing(row["complete"]):
        return "-"
    return short_counts({state: int(row[state]) for state in (*ENDED, "unfinished")})


_COUNTS = Column("complete", "c/p/f", _trial_counts)


def _interval(trials: DataFrame, key: str, name: str) -> Row:
    """Mean over these trials' seeds with its t interval, as `name`, `name`_low, `name`_high."""
    interval = statistics.over_seeds(_values(trials, key))
    values = {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
    return {key: float(value) for key, value in values.items()}


def _values(trials: DataFrame, key: str) -> NDArray[np.float64]:
    """Return the finite values of complete trials; none if no trial has the metric."""
    there = usable(trials, key)
    return np.asarray(trials.loc[there, key], dtype=np.float64) if there.any() else np.empty(0)


def _per_stratum(frame: DataFrame, best: DataFrame, metrics: dict[str, str]) -> list[Row]:
    """A row per cell with `metrics` (key -> name) of its best point; none if no trial has any of them."""
    rows = []
    for (group, arm, level, width), trials in cells(frame):
        mine = best.loc[best.index.intersection(trials.index)]
        row: Row = {"group": group, "arm": arm, "level_name": trials["level_name"].iloc[0], "level": level}
        row |= {"dict_size": width, "stratum": trials["stratum"].iloc[0]}
        row |= {"point": mine["point"].iloc[0] if len(mine) else None, "seeds": len(mine)}
        for key, name in metrics.items():
            row |= _interval(mine, key, name)
        rows.append(row | counted(trials["state"]))
    return rows if any(math.isfinite(row[name]) for row in rows for name in metrics.values()) else []


# --- neighbourhoods --------------------------------------------------------------------------------------------------

_FIDELITY = {
    "final/cosine": "cosine",
    "final/cosine_p5": "cosine_p5",
    "final/knn_overlap_at_10": "knn_overlap_at_10",
    "final/similarity_rank_correlation": "similarity_rank_correlation",
}
_FIDELITY_WORDS = {
    "cosine": "cosine between embedding and reconstruction",
    "knn_overlap_at_10": "share of the ten nearest neighbours that stay",
    "similarity_rank_correlation": "Spearman's correlation of pairwise cosines",
}


def fidelity(frame: DataFrame, best: DataFrame) -> Table:
    """Return a row per stratum: similarities between test texts after reconstruction."""
    columns = [
        *_WHERE, Column("seeds", "seeds"), Column("cosine", "cosine ± 95%", plus_minus("cosine", "cosine_high")),
        Column("cosine_p5", "5th percentile", decimals("cosine_p5", 4), drop=2),
        Column("knn_overlap_at_10", "same 10 neighbours ± 95%",
               plus_minus("knn_overlap_at_10", "knn_overlap_at_10_high")),
        Column("similarity_rank_correlation", "rank correlation ± 95%",
               plus_minus("similarity_rank_correlation", "similarity_rank_correlation_high")), _COUNTS,
    ]  # fmt: skip
    rows = _per_stratum(frame, best, _FIDELITY)
    said = [words for name, words in _FIDELITY_WORDS.items() if any(math.isfinite(row[name]) for row in rows)]
    note = f"Best point of each stratum, mean and t interval over its seeds, on test texts: {'; '.join(said)}."
    return make("fidelity", "Similarities after reconstruction", rows, columns, note if said else "")


# --- classes ---------------------------------------------------------------------------------------------------------


def probing(frame: DataFrame, best: DataFrame) -> Table:
    """Return a row per stratum and per baseline: how well k latents, or k dimensions, predict the classes."""
    metrics = {f"final/probing_{score}_k{k}": f"{score}_k{k}" for score in SCORES for k in PROBED_LATENTS}
    rows = _per_stratum(frame, best, metrics)
    if not rows:
        note = "No trial has these scores: add probing to eval.metrics, for a dataset with enough labels."
        return make("probing", "k-sparse probing", [], [*_WHERE, _COUNTS], note)
    for group in dict.fromkeys(row["group"] for row in rows):
        rows += _baselines(best[best["group"] == group], group)
    columns = [*_WHERE, Column("seeds", "seeds")]
    for score, title in SCORES.items():
        drop = 0 if score == "accuracy" else 3
        columns += [
            Column(name, f"{title} k={k}", plus_minus(name, f"{name}_high", 3), drop=drop)
            for k in PROBED_LATENTS
            for name in [f"{score}_k{k}"]
        ]
    return make("probing", "k-sparse probing", rows, [*columns, _COUNTS], _PROBING + _ceiling(rows))


_PROBING = (
    "Classes predicted by a logistic regression on the k latents (raw dimensions, principal components) whose means "
    "differ "
    "most between class and rest, on test texts: balanced accuracy and area under the ROC curve, 0.5 by chance. Best "
    "point of each stratum, mean and t interval over its seeds."
)


def _baselines(best: DataFrame, group: str) -> list[Row]:
    """Baselines depend on the data alone: every trial of a group has the same, up to rounding."""
    rows = []
    for suffix, name in BASELINES.items():
        row: Row = {"group": group, "arm": name, "level_name": "", "level": math.nan, "dict_size": math.nan}
        for score in SCORES:
            for size in (*(f"k{k}" for k in PROBED_LATENTS), "all"):
                there = _values(best, f"final/probing_{score}_{size}{suffix}")
                row[f"{score}_{size}"] = float(there.mean()) if len(there) else math.nan
                row[f"{score}_{size}_low"] = row[f"{score}_{size}_high"] = math.nan
        if any(math.isfinite(row[f"{score}_k{k}"]) for score in SCORES for k in PROBED_LATENTS):
            rows.append(row)
    return rows


def _ceiling(rows: Sequence[Row]) -> str:
    """Return the sentence on a probe on all dimensions."""
    texts = []
    for row in rows:
        if math.isfinite(row.get("accuracy_all", math.nan)):
            where = f" ({row['group']})" if row["group"] else ""
            texts.append(f" All raw dimensions{where}: accuracy {row['accuracy_all']:.3f}, AUC {row['auc_all']:.3f}.")
    return "".join(texts)


# --- other seeds -----------------------------------------------------------------------------------------------------


def stability(rows: Sequence[Row]) -> Table:
    """A row per point that several seeds have completed (`stability.stability`)."""
    several = any(not row["best"] for row in rows)
    columns = [
        *_WHERE, *([Column("point", "point", _point)] if several else []), Column("seeds", "seeds"),
        Column("cosine", "matched cosine", _range),
        Column("same_share", f"above {SAME}", lambda r: percentage(r["same_share"])),
        Column("alive", "live latents", lambda r: "-" if missing(r["alive"]) else f"{r['alive']:.0f}"),
        Column("sampled", "sampled"), _COUNTS,
    ]  # fmt: skip
    pairs = ", lowest and highest pair of seeds," if any(row["pairs"] > 1 for row in rows) else ""
    note = (
        "Latents of two seeds matched one to one by the cosine of their decoder rows (Hungarian algorithm; those that "
        f"fire on a test text): mean cosine{pairs} and the share matched above {SAME}."
    )
    if any(row["sampled"] for row in rows):
        note += " Sampled: so many rows of one dictionary were matched; the value is at least that of all rows."
    if not rows:
        note = "No point has SAEs of several complete seeds to compare."
    shown = [{key: value for key, value in row.items() if key != "shares"} for row in rows]
    return make("stability", "Stability of latents across seeds", shown, columns, note)


def _point(row: Row) -> str:
    return f"{row['point']} (best)" if row["best"] else str(row["point"])


def _range(row: Row) -> str:
    text = f"{row['cosine']:.3f}"
    return text if row["pairs"] < 2 else f"{text} ({row['cosine_lowest']:.3f} to {row['cosine_highest']:.3f})"
