"""The same sweep with and without pruning: does it find the same best points, and for how much training?

python experiments/pruning/compare.py REFERENCE SWEEP... [--runs-dir DIR]

REFERENCE is the sweep in which nothing was stopped. Prints a markdown table and writes results.csv beside this script.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

import saebench.report


def read(sweep: str, runs_dir: str | None) -> pd.DataFrame:
    """A row per trial: stratum, point, state, lr, final fvu, spent (examples seen at its last evaluation)."""
    report = saebench.report.load(sweep, runs_dir=runs_dir)
    spent = report.curves.groupby("run_id")["samples"].max().rename("spent")
    frame = report.frame.merge(spent, left_on="run_id", right_index=True, how="left")
    return frame.assign(spent=frame["spent"].fillna(0))


def best_of(frame: pd.DataFrame, stratum: str) -> pd.Series:
    mine = frame[(frame["stratum"] == stratum) & (frame["state"] == "complete")]
    return mine.loc[mine["eval/fvu"].idxmin()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference")
    parser.add_argument("sweeps", nargs="+")
    parser.add_argument("--runs-dir")
    args = parser.parse_args()
    reference = read(args.reference, args.runs_dir)
    rows = []
    for sweep in (args.reference, *args.sweeps):
        frame = read(sweep, args.runs_dir)
        assert set(frame["point"]) == set(reference["point"]), f"{sweep}: not the points of {args.reference}"
        for stratum in sorted(set(frame["stratum"])):
            mine, whole = (f[f["stratum"] == stratum] for f in (frame, reference))
            best, first = best_of(frame, stratum), best_of(reference, stratum)
            rows.append(
                {
                    "sweep": sweep,
                    "stratum": stratum,
                    "complete": int((mine["state"] == "complete").sum()),
                    "pruned": int((mine["state"] == "pruned").sum()),
                    "share of the training": mine["spent"].sum() / whole["spent"].sum(),
                    "best FVU": best["eval/fvu"],
                    "lr": best["lr"],
                    "same point": best["point"] == first["point"],
                    "regret": best["eval/fvu"] / first["eval/fvu"] - 1,
                    "training": mine["spent"].sum(),
                    "of": whole["spent"].sum(),
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "results.csv", index=False, float_format="%.6g")
    total = table.groupby("sweep", sort=False)[["training", "of"]].sum()
    for sweep, row in total.iterrows():
        print(f"{sweep}: {row['training']:,.0f} of {row['of']:,.0f} examples = {row['training'] / row['of']:.1%}")
    print()
    columns = table.columns.drop(["training", "of"]).tolist()
    print("| " + " | ".join(columns) + " |\n" + "| --- " * len(columns) + "|")
    for row in table[columns].itertuples(index=False):
        words = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in row]
        print("| " + " | ".join(words) + " |")


if __name__ == "__main__":
    main()
