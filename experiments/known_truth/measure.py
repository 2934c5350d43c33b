"""What every trained SAE has recovered of the truth, and which metric orders the arms as the truth does.

    python measure.py RUN DATA OUT      # RUN: the sweep's directory; OUT/trials.csv, OUT/metrics.csv, OUT/arms.csv

The truth is measured on rows that no SAE has seen, over latents that fire there (of a signed SAE, over both ends):
recovered (mean over features of the largest cosine with a decoder row), f1 (of firing, features matched one to one by
cosine, 0 for a feature without a partner), mixed (share of latents whose row has a cosine above 0.4 with two features),
split (share of features with two rows above 0.7), absorbed (how much rarer a parent's latent fires on it where a child
fires than where none does).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from generate import unit
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import rankdata

from saebench.saes import load_sae

Array = NDArray[Any]
METRICS = {
    "test/fvu": -1, "test/probing_auc_k1": 1, "test/probing_auc_k5": 1, "test/label_auroc": 1,
    "test/label_auroc_above_floor": 1, "test/label_f1": 1, "test/knn_overlap_at_10": 1,
    "test/similarity_rank_correlation": 1, "test/code_stability": 1, "test/c_dec": -1, "test/dead_fraction": -1,
    "stability": 1,
}  # fmt: skip
"""Metric -> 1 where more is better."""
MIXES, SAME = 0.4, 0.7
DRAWS = 1000


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
def sae_scores(folder: Path, world: Any, cut: int | None = None) -> tuple[dict[str, float], Array]:
    """The scores of the SAE of a trial, its latents cut to the `cut` largest of a row; and its rows that fire."""
    sae = load_sae(folder)
    latents = sae.encode(torch.from_numpy(world["x"]))
    if cut is not None:
        index = latents.topk(cut, dim=1).indices
        latents = torch.zeros_like(latents).scatter(1, index, latents.gather(1, index))
    codes, rows = latents.numpy(), sae.W_dec.numpy()
    fires = np.hstack([codes > 0, codes < 0]) if sae.config.signed else codes > 0
    rows = np.vstack([rows, -rows]) if sae.config.signed else rows
    live = fires.any(0)
    scores = truth_of(rows[live], fires[:, live], world["directions"], world["codes"] > 0, world["parent"])
    return scores, sae.W_dec.numpy()[(codes != 0).any(0)]


def trials(run: Path, data: Path) -> pd.DataFrame:
    """A row per complete trial (and level that it serves): its arm, its metrics, the truth."""
    world = dict(np.load(data / "truth.npz"))
    found, decoders = [], []
    for folder in sorted((run / "trials").iterdir()):
        events = [json.loads(line) for line in (folder / "events.jsonl").read_text("utf-8").splitlines()]
        if events[-1].get("type") != "done":
            continue
        config, values = json.loads((folder / "config.json").read_text("utf-8")), events[-1]["values"]
        sae = config["sae"]
        level = sae.get("k") or sae.get("target_l0")
        for k in [int(key.rpartition("/")[2]) for key in values if key.startswith("test/fvu_at/")] or [None]:
            scores, rows = sae_scores(folder / "sae", world, k if k and k < level else None)
            own = {key: values.get(key, np.nan) for key in METRICS if key.startswith("test/")}
            if k and k < level:
                own = dict.fromkeys(own, np.nan) | {"test/fvu": values[f"test/fvu_at/{k}"]}
            found.append({"trial": int(folder.name), "arm": arm_of(sae), "level": k or level, "width": sae["dict_size"],
                          "seed": config["seed"], "l0": values.get(f"test/l0_at/{k}", values["test/l0"])}
                         | own | scores)  # fmt: skip
            decoders.append(rows)
    frame = pd.DataFrame(found)
    frame["stability"] = np.nan
    for _, mine in frame.groupby(["arm", "level", "width"]):
        cosines = [matched(decoders[i], decoders[j]) for i in mine.index for j in mine.index if i < j]
        frame.loc[mine.index, "stability"] = np.mean(cosines) if cosines else np.nan
    return frame


def matched(a: Array, b: Array) -> float:
    """Mean cosine of the rows of two dictionaries, matched one to one."""
    cosine = unit(a.astype(np.float64)) @ unit(b.astype(np.float64)).T
    return float(cosine[linear_sum_assignment(cosine, maximize=True)].mean())


def arm_of(sae: dict[str, Any]) -> str:
    """The type, and what makes the arm another one."""
    own = [sae["control"]] if sae["control"] else []
    return " ".join([sae["type"], *own, *(["ortho"] if sae["ortho_coeff"] else [])])


def correlations(frame: pd.DataFrame, truth: str, rng: np.random.Generator, *, controls: bool) -> pd.DataFrame:
    """A row per metric: Spearman's correlation with the truth over the arms of a cell (level and width), mean over
    cells, with a bootstrap over arms and seeds."""
    used = frame if controls else frame[~frame["arm"].str.contains("frozen")]
    rows = []
    for metric, sign in METRICS.items():
        cells = [np.array([mine[[metric, truth]].to_numpy(float) for _, mine in cell.groupby("arm")], dtype=object)
                 for _, cell in used.dropna(subset=[metric]).groupby(["level", "width"])]  # fmt: skip
        cells = [cell for cell in cells if len(cell) > 3]
        if not cells:
            continue
        draws = [np.nanmean([spearman(resample(cell, rng)) for cell in cells]) * sign for _ in range(DRAWS)]
        value = sign * np.nanmean([spearman(np.array([arm.mean(0) for arm in cell])) for cell in cells])
        low, high = np.nanpercentile(draws, [2.5, 97.5])
        rows.append({"metric": metric, "truth": truth, "controls": controls, "correlation": value, "low": low,
                     "high": high, "cells": len(cells), "arms": max(map(len, cells))})  # fmt: skip
    return pd.DataFrame(rows)


def resample(cell: Array, rng: np.random.Generator) -> Array:
    """Means of arms drawn with replacement, each over seeds drawn with replacement."""
    arms = [cell[i] for i in rng.integers(len(cell), size=len(cell))]
    return np.array([arm[rng.integers(len(arm), size=len(arm))].mean(0) for arm in arms])


def spearman(pairs: Array) -> float:
    """Rank correlation of two columns; NaN without spread."""
    a, b = (rankdata(pairs[:, i].astype(float)) for i in (0, 1))
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else np.nan


def main(arguments: list[str]) -> None:
    """Write the three tables."""
    run, data, out = map(Path, arguments)
    out.mkdir(parents=True, exist_ok=True)
    frame = trials(run, data)
    frame.to_csv(out / "trials.csv", index=False, float_format="%.5g")
    rng = np.random.default_rng(0)
    found = [correlations(frame, truth, rng, controls=c) for truth in ("f1", "recovered") for c in (False, True)]
    pd.concat(found).to_csv(out / "metrics.csv", index=False, float_format="%.3f")
    means = frame.groupby(["arm", "level", "width"]).mean(numeric_only=True).drop(columns=["trial", "seed"])
    means["seeds"] = frame.groupby(["arm", "level", "width"]).size()
    means.reset_index().to_csv(out / "arms.csv", index=False, float_format="%.4f")
    print(pd.concat(found).to_string(index=False))


if __name__ == "__main__":
    main(sys.argv[1:])
