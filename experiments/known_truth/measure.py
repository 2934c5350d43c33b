"""What every trained SAE has recovered of the truth, and which metric orders the arms as the truth does.

    python measure.py trials.csv OUT      # OUT/metrics.csv, OUT/arms.csv; prints what README.md shows of them

The truth is measured on rows that no SAE has seen, over latents that fire there (of a signed SAE, over both ends):
recovered (mean over features of the largest cosine with a decoder row), f1 (of firing, features matched one to one by
cosine, 0 for a feature without a partner), mixed (share of latents whose row has a cosine above 0.4 with two features),
split (share of features with two rows above 0.7), absorbed (how much rarer a parent's latent fires on it where a child
fires than where none does).
"""

from __future__ import annotations

import sys
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from generate import unit
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from saebench.saes import SAE
from saebench.trial.levels import largest

Array = NDArray[Any]
METRICS = {
    "test/fvu": -1, "test/probing_auc_k1": 1, "test/probing_auc_k5": 1, "test/knn_overlap_at_10": 1,
    "test/similarity_rank_correlation": 1, "test/code_stability": 1, "test/c_dec": -1, "test/dead_fraction": -1,
    "test/coherence_above_floor": 1, "test/example_auroc_above_floor": 1, "test/label_auroc_above_floor": 1,
    "test/label_f1_above_floor": 1, "stability": 1,
}  # fmt: skip
"""Metric -> 1 where more is better."""
TRUTHS = ("recovered", "f1", "mixed", "split", "absorbed")
SHOWN = {
    "test/fvu": "FVU", "test/knn_overlap_at_10": "neighbours kept", "test/example_auroc_above_floor": "example AUROC",
    "test/label_auroc_above_floor": "label AUROC", "stability": "stability", "mixed": "mixed", "split": "split",
    "absorbed": "absorbed", "test/dead_fraction": "dead",
}  # fmt: skip
"""Column -> its heading in the table of arms."""
MIXES, SAME = 0.4, 0.7
DRAWS = 2000


def truth_of(rows: Array, fires: Array, directions: Array, present: Array, parent: Array) -> dict[str, float]:
    """The scores of decoder rows (latents, d_in) that fire (texts, latents), against features that are present
    (texts, features)."""
    if not len(rows):
        return {"recovered": 0.0, "f1": 0.0, "mixed": np.nan, "split": 0.0, "absorbed": np.nan}
    cosine = directions @ unit(rows.astype(np.float64)).T
    feature, latent = linear_sum_assignment(cosine, maximize=True)
    both = (present[:, feature] & fires[:, latent]).sum(0)
    f1 = np.zeros(len(directions))
    f1[feature] = 2 * both / np.maximum(present[:, feature].sum(0) + fires[:, latent].sum(0), 1)
    two = np.sort(cosine, axis=0)[-2]
    return {
        "recovered": float(cosine.max(1).mean()),
        "f1": float(f1.mean()),
        "mixed": float((two > MIXES).mean()),
        "split": float(((cosine > SAME).sum(1) > 1).mean()),
        "absorbed": absorbed(dict(zip(feature, latent, strict=True)), cosine, fires, present, parent),
    }


def absorbed(of: dict[int, int], cosine: Array, fires: Array, present: Array, parent: Array) -> float:
    """Recall of a parent's latent without a child less that with one, mean over parents that are found."""
    lost = []
    for place in np.unique(parent[parent >= 0]):
        if place not in of or cosine[place, of[place]] < SAME:
            continue
        child = present[:, parent == place].any(1)
        with_child, alone = present[:, place] & child, present[:, place] & ~child
        if min(with_child.sum(), alone.sum()) >= 20:
            lost.append(fires[alone, of[place]].mean() - fires[with_child, of[place]].mean())
    return float(np.mean(lost)) if lost else np.nan


@torch.no_grad()
def sae_scores(sae: SAE, world: Any, cut: int | None = None) -> tuple[dict[str, float], Array]:
    """The scores of an SAE, its latents cut to the `cut` largest of a row; and its decoder rows that fire."""
    latents = sae.encode(torch.from_numpy(world["x"]))
    latents = latents if cut is None else largest(latents, cut)
    return dictionary_scores(sae.W_dec.detach().numpy(), latents.numpy(), world, signed=sae.config.signed)


def dictionary_scores(rows: Array, codes: Array, world: Any, *, signed: bool) -> tuple[dict[str, float], Array]:
    """The scores of codes (texts, latents) on a dictionary's rows (latents, d_in); and its rows that fire."""
    fires = np.hstack([codes > 0, codes < 0]) if signed else codes > 0
    ends = np.vstack([rows, -rows]) if signed else rows
    live = fires.any(0)
    scores = truth_of(ends[live], fires[:, live], world["directions"], world["codes"] > 0, world["parent"])
    return scores, rows[(codes != 0).any(0)]


def matched(a: Array, b: Array) -> float:
    """Mean cosine of the rows of two dictionaries, matched one to one."""
    cosine = unit(a.astype(np.float64)) @ unit(b.astype(np.float64)).T
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].mean())


def correlations(frame: pd.DataFrame, truth: str, rng: np.random.Generator, *, controls: bool) -> pd.DataFrame:
    """A row per metric: Spearman's correlation with the truth over the arms of a cell (level and width), mean over
    cells, with a bootstrap over arms and, inside an arm, over seeds. `controls`: with frozen parts and floors."""
    used = frame if controls else frame[~frame["arm"].str.contains("frozen|soft|floor")]
    rows = []
    for metric, sign in METRICS.items():
        cells = [[mine[[metric, truth]].to_numpy(float) for _, mine in cell.groupby("arm")]
                 for _, cell in used.dropna(subset=[metric]).groupby(["level", "width"])]  # fmt: skip
        cells = [cell for cell in cells if len(cell) > 3]
        if not cells:
            continue
        value = over_cells([spearman(np.array([[arm.mean(0) for arm in cell]])) for cell in cells])
        draws = over_cells([spearman(resampled(cell, rng)) for cell in cells])
        low, high = sorted(sign * np.nanpercentile(draws, [2.5, 97.5]))
        rows.append({"metric": metric, "truth": truth, "controls": controls, "correlation": sign * float(value[0]),
                     "low": low, "high": high, "cells": len(cells), "arms": max(map(len, cells))})  # fmt: skip
    return pd.DataFrame(rows)


def over_cells(values: list[Array]) -> Array:
    """The mean of those that are defined; NaN for none."""
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanmean(np.stack(values), axis=0))


def resampled(cell: list[Array], rng: np.random.Generator) -> Array:
    """(DRAWS, arms, 2): means of arms drawn with replacement, each over as many seeds drawn with replacement."""
    counts = np.array([len(arm) for arm in cell])
    values = np.stack([np.resize(arm, (counts.max(), 2)) for arm in cell])
    arms = rng.integers(len(cell), size=(DRAWS, len(cell)))
    seeds = (rng.random((*arms.shape, counts.max())) * counts[arms][..., None]).astype(int)
    return np.asarray(values[arms[..., None], seeds].mean(2))


def spearman(pairs: Array) -> Array:
    """(draws,) rank correlation of two columns (draws, rows, 2); NaN without spread."""
    ranks = rankdata(pairs, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    a, b = ranks[..., 0], ranks[..., 1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1)))


def order_of_arms(frame: pd.DataFrame, width: int = 256, level: int = 8) -> pd.DataFrame:
    """A row per arm, by F1 at this width and level: means over seeds, F1 with half the range over seeds."""
    seeds = frame.groupby(["arm", "width", "level"])
    mean, half = seeds.mean(numeric_only=True), (seeds["f1"].max() - seeds["f1"].min()) / 2
    rows = []
    for arm in frame["arm"].unique():
        f1 = {key: mean["f1"].get((arm, *key), np.nan) for key in product((256, 128), (4, 8, 16))}
        at = mean.loc[(arm, width, level)]
        row = {"arm": arm, "seeds": seeds.size()[(arm, width, level)], "F1": at["f1"],
               "half the range": half[(arm, width, level)]}  # fmt: skip
        for wide in (256, 128):
            row[f"F1, {wide} latents, k 4 / 8 / 16"] = " / ".join(f"{f1[wide, k]:.3f}" for k in (4, 8, 16))
        rows.append(row | {SHOWN[name]: at[name] for name in SHOWN})
    return pd.DataFrame(rows).sort_values("F1", ascending=False)


def markdown(table: pd.DataFrame, digits: int) -> str:
    """The table, with `digits` decimals."""

    def cell(value: Any) -> str:
        return "" if value != value else f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    lines = [list(table.columns), ["---"] * len(table.columns), *([cell(v) for v in row] for row in table.to_numpy())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: list[str]) -> None:
    """Write the tables of a file of trials that study.py wrote."""
    trials, out = map(Path, arguments)
    frame = pd.read_csv(trials)
    rng = np.random.default_rng(0)
    found = [correlations(frame, truth, rng, controls=c) for truth in ("f1", "recovered") for c in (False, True)]
    pd.concat(found).to_csv(out / "metrics.csv", index=False, float_format="%.3f")
    means = frame.groupby(["arm", "level", "width"]).mean(numeric_only=True).drop(columns=["seed"])
    means["seeds"] = frame.groupby(["arm", "level", "width"]).size()
    means.reset_index().to_csv(out / "arms.csv", index=False, float_format="%.4f")
    print(markdown(order_of_arms(frame), 3), markdown(pd.concat(found), 2), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])
