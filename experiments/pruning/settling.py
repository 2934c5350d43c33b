"""How early FVU ranks the trials of each type, and how far the training L0 of jumprelu is from its target by then.

python experiments/pruning/settling.py RUN_FOLDER...

RUN_FOLDERs of sweeps in which nothing was stopped (runs/NAME). Reads the trials' own records (events.jsonl); writes
settling.csv and settling.png beside this script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd

from saebench.plan import PRUNE_SHARE

HERE = Path(__file__).parent


def records(folder: Path) -> list[dict[str, Any]]:
    """A row per trial and mark: evaluated FVU and L0, and the L0 of the training batch logged last."""
    rows = []
    for trial in sorted((folder / "trials").iterdir()):
        config, l0 = json.loads((trial / "config.json").read_text()), float("nan")
        for line in (trial / "events.jsonl").read_text().splitlines():
            event = json.loads(line)
            l0 = event["values"].get("train/l0", l0)
            if event["type"] == "eval":
                rows.append(
                    {
                        "sweep": folder.name,
                        "type": config["sae"]["type"],
                        "stratum": config["stratum"],
                        "trial": trial.name,
                        "target": config["sae"].get("target_l0") or config["sae"].get("k"),
                        "share": round(event["samples"] / config["train"]["samples"], 4),
                        "fvu": event["values"]["eval/fvu"],
                        "l0": event["values"]["eval/l0"],
                        "training l0": l0,
                    }
                )
    return rows


def over_shares(frame: pd.DataFrame) -> pd.DataFrame:
    """Per stratum and share: Spearman of FVU with the final one; by what factor L0 misses its target, median."""
    rows = []
    for (sweep, kind, stratum), mine in frame.groupby(["sweep", "type", "stratum"]):
        values = mine.pivot_table(index="trial", columns="share", values="fvu").dropna()
        for share, now in mine.groupby("share"):
            factor = {
                f"{name} off by": (lambda r: r.where(r > 1, 1 / r))(now[name].clip(lower=0.01) / now["target"]).median()
                for name in ("training l0", "l0")
            }
            spearman = values[share].corr(values[1.0], method="spearman")
            rows.append(
                {"sweep": sweep, "type": kind, "stratum": stratum, "share": share, "spearman": spearman, **factor}
            )
    return pd.DataFrame(rows)


def draw(frame: pd.DataFrame, table: pd.DataFrame) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    first = frame[(frame["type"] == "jumprelu") & (frame["sweep"] == frame["sweep"].iloc[0])]
    final = first[first["share"] == 1.0].set_index("trial")["fvu"].rank()
    for trial, mine in first.groupby("trial"):
        colour = plt.get_cmap("viridis")((final[trial] - 1) / max(1, len(final) - 1))
        left.plot(mine["share"], mine["training l0"] / mine["target"], color=colour, linewidth=1)
    left.set(yscale="log", xlabel="share of the budget", ylabel="training L0 / target", ylim=(0.03, 5))
    left.set_title("jumprelu, a line per trial; dark: best final FVU", fontsize=10)
    for kind, mine in table.groupby("type"):
        right.plot(mine.groupby("share")["spearman"].mean(), label=kind)
    right.axhline(0, color="grey", linewidth=0.5)
    right.set(xlabel="share of the budget", ylabel="Spearman(FVU here, final FVU), mean of strata")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.axvline(PRUNE_SHARE, color="grey", linestyle=":", linewidth=1)
    figure.savefig(HERE / "settling.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    args = parser.parse_args()
    frame = pd.DataFrame([row for folder in args.folders for row in records(folder)])
    table = over_shares(frame)
    table.to_csv(HERE / "settling.csv", index=False, float_format="%.4g")
    draw(frame, table)
    shown = table.groupby(["type", "share"])[["spearman", "training l0 off by", "l0 off by"]].mean().unstack("share")
    print(shown.T.round(2).to_string())


if __name__ == "__main__":
    main()
