"""Every arm against batchtopk: python summary.py trials.csv summary.csv

Pairs by seed; the interval is the t interval over seeds, wider by the larger gap of the two searches (FVU alone).
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd

from saebench.report.statistics import over_seeds

BASE = "batchtopk"
DIFFERENCES = ("probing_auc_k1", "probing_auc_k5", "knn_overlap_at_10", "code_stability", "dead_fraction", "c_dec")


def row(mine: pd.DataFrame, base: pd.DataFrame) -> dict[str, object]:
    """FVU in percent (negative: better than batchtopk), the other metrics as differences."""
    both = mine.merge(base, on="seed", suffixes=("", "_base"))
    ratio = over_seeds(np.log(both.fvu / both.fvu_base))
    gap = float(np.nanmax([*both.gap, *both.gap_base]))
    low, high = (100 * (np.exp(float(value) + sign * gap) - 1) for value, sign in ((ratio.low, -1), (ratio.high, 1)))
    said = "better" if high < 0 else "worse" if low > 0 else "undecided"
    found: dict[str, object] = {
        "seeds": len(both), "l0": both.l0.mean(), "l0_base": both.l0_base.mean(), "fvu": both.fvu.mean(),
        "fvu_base": both.fvu_base.mean(), "percent": 100 * (np.exp(float(ratio.mean)) - 1), "low": low, "high": high,
        "gap_percent": 100 * gap, "edge": bool(both.edge.any() or both.edge_base.any()), "said": said,
        "coeff": both.coeff.iloc[0], "factor": both.factor.iloc[0],
    }  # fmt: skip
    for name in DIFFERENCES:
        change = over_seeds((both[name] - both[f"{name}_base"]).to_numpy())
        found |= {name: float(change.mean), f"{name}_half": float(change.high - change.mean)}
    return found


def main(trials: str, out: str) -> None:
    frame = pd.read_csv(trials)
    frame = frame[frame.role == "compare"]
    rows = []
    for (corpus, level), cell in frame.groupby(["corpus", "level"]):
        base = cell[cell.arm == BASE]
        for arm, mine in cell[cell.arm != BASE].groupby("arm", sort=False):
            if len(mine.merge(base, on="seed")) > 1:
                rows.append({"corpus": corpus, "level": level, "arm": arm} | row(mine, base))
    found = pd.DataFrame(rows)
    found.to_csv(out, index=False, float_format="%.4g")
    print(found.to_string(index=False, float_format=lambda value: f"{value:.4g}"))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
