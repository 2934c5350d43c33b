"""Draw what less error costs: FVU against class AUROC and code stability, all types and floors, with the front.

python experiments/pursuit/figure.py results.csv --out trade.png [--corpus wnp-minilm] [--k 32] [--dict-size 1536]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from summary import chosen

COLOURS = {"omp": "#b3261e", "topk": "#1b5fa8", "batchtopk": "#14795b", "matryoshka": "#7a4fb5", "jumprelu": "#9a6200",
           "overcomplete": "#555555", "sae-lens": "#555555", "floor": "#8a8a8a"}  # fmt: skip
FARTHEST = 0.4
"""FVU of what is drawn; what lies beyond is written in a corner."""
PANELS = {"auc_1": "class AUROC of the best latent", "stability": "latents kept under noise of 0.1"}


def colour(arm: str) -> str:
    return next((c for name, c in COLOURS.items() if arm.startswith(name)), "#333333")


def front(points: pd.DataFrame, y: str) -> pd.DataFrame:
    """The points that none beats in both: less error and more of y."""
    best = points.sort_values(["fvu", y], ascending=[True, False])
    return best[best[y] > best[y].cummax().shift(fill_value=-1.0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--corpus", default="wnp-minilm")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dict-size", type=int, default=1536)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = chosen(pd.read_csv(args.results))
    rows = rows[(rows.corpus == args.corpus) & (rows.k == args.k) & (rows.dict_size == args.dict_size)]
    points = rows.groupby("arm", sort=False)[["fvu", *PANELS]].mean().reset_index()
    beyond, points = points[points.fvu > FARTHEST], points[points.fvu <= FARTHEST]
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(2, 1, figsize=(7.2, 11.4), layout="constrained")
    for axis, (y, name) in zip(axes, PANELS.items(), strict=True):
        drawn = front(points, y)
        axis.plot(drawn.fvu, drawn[y], color="#d5d5d5", lw=6, alpha=0.6, zorder=1, solid_capstyle="round")
        for arm, fvu, value in points[["arm", "fvu", y]].itertuples(index=False):
            untrained = arm.startswith("floor")
            axis.plot(fvu, value, "s" if untrained else "o", ms=7, mec=colour(arm), zorder=3,
                      mfc="white" if untrained else colour(arm))  # fmt: skip
        label(axis, points, y)
        axis.set(xlabel="FVU on test texts (less is better)", ylabel=f"{name} (more is better)")
        axis.grid(color="#f0f0f0")
        said = [f"{row.arm.removeprefix('floor: ')}: FVU {row.fvu:.2f}, {row[y]:.2f}" for _, row in beyond.iterrows()]
        axis.text(0.98, 0.03, "\n".join(["squares are untrained; beyond the edge:", *said]) if said else "", ha="right",
                  transform=axis.transAxes, color=COLOURS["floor"])  # fmt: skip
    figure.suptitle("Less error, less meaning", x=0.01, ha="left", weight="bold")
    axes[0].set_title(
        f"{args.corpus}, k {args.k} of {args.dict_size:,} latents; the band joins what nothing beats in both",
        loc="left",
    )
    figure.savefig(args.out, dpi=120)


def label(axis: plt.Axes, points: pd.DataFrame, y: str) -> None:
    """Write each name at the nearest free height to the right of its point, with a line where it had to move."""
    left, width = points.fvu.min(), np.ptp(points.fvu)
    low, height = points[y].min(), np.ptp(points[y])
    axis.set_xlim(left - 0.06 * width, left + 1.42 * width)
    axis.set_ylim(low - 0.08 * height, low + 1.14 * height)
    step, taken = 0.034 * height, list[tuple[float, float, float]]()
    dots = [(value, fvu - 0.015 * width, fvu + 0.015 * width) for fvu, value in points[["fvu", y]].to_numpy()]
    for arm, fvu, value in points.sort_values("fvu", ascending=False)[["arm", "fvu", y]].itertuples(index=False):
        for shift in sorted(range(-24, 25), key=abs):
            at, begin = value + shift * step, fvu + (0.025 if abs(shift) < 2 else 0.06) * width
            end = begin + 0.027 * width * len(arm)
            near = [*taken, *dots]
            if low - 0.06 * height < at < low + 1.12 * height and not any(
                abs(at - other) < step and begin < b and end > a for other, a, b in near
            ):
                break
        taken.append((at, begin, end))
        if shift:
            axis.plot([fvu, begin - 0.005 * width], [value, at], color=colour(arm), lw=0.6, zorder=2)
        axis.text(begin, at, arm.removeprefix("floor: "), va="center", fontsize=9, color=colour(arm))


if __name__ == "__main__":
    main()
