"""Draw scores above their best floor against FVU, a point per SAE.

python experiments/latents/figure.py scores-wordnet.csv scores-botocore.csv --out scores.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

SCORES = {
    "coherence": "coherence",
    "example_auroc": "example AUROC",
    "label_auroc": "label AUROC",
    "label_f1": "label F1",
}
ARMS = {"topk": "#1b5fa8", "batchtopk": "#14795b", "topk, frozen_decoder": "#b3261e"}
FLOORS = ["random", "raw", "pca"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = pd.concat([pd.read_csv(path) for path in args.tables])
    rows["above"] = rows["value"] - rows[FLOORS].max(axis=1)
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, len(SCORES), figsize=(12.5, 3.3), layout="constrained", sharex=True)
    markers = dict(zip(rows["sweep"].unique(), "os", strict=False))
    for axis, (score, name) in zip(axes, SCORES.items(), strict=True):
        axis.axhline(0, color="#888888", lw=0.8)
        for (sweep, arm), some in rows[rows["score"] == score].groupby(["sweep", "arm"], sort=False):
            axis.plot(some["fvu"], some["above"], markers[sweep], color=ARMS[arm], ms=6, alpha=0.8,
                      label=f"{arm}, {sweep}")  # fmt: skip
        axis.set(title=name, xlabel="FVU (less is better)")
        axis.grid(color="#f0f0f0")
    axes[0].set_ylabel("above the best floor")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
