"""How early does held-out FVU rank the points of a stratum as the final FVU does?

python experiments/early_signal/analyse.py [SWEEP] [--runs-dir DIR]     (reads MLFLOW_TRACKING_URI like saebench report)

Writes strata.csv, summary.csv, summary.md and curves.png beside this script.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import pandas as pd

import saebench.report

HERE = Path(__file__).parent
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.5)
CLOSE = 0.1
"""Pairs whose final FVU differ by less than this (relative) are the hard ones."""


def curves(sweep: str, runs_dir: str | None) -> pd.DataFrame:
    """A row per complete trial and mark: stratum, type, trial, share of the budget, fvu there, final fvu."""
    report = saebench.report.load(sweep, runs_dir=runs_dir)
    trials = report.frame
    complete = trials.loc[trials["state"] == "complete", ["run_id", "trial", "type", "stratum", "samples", "eval/fvu"]]
    print(report.counts)
    found = report.curves.merge(complete.rename(columns={"samples": "budget", "eval/fvu": "final"}), on="run_id")
    found["share"] = (found["samples"] / found["budget"]).round(4)
    return found.rename(columns={"value": "fvu"})


def regret(mine: pd.DataFrame, keep: float) -> float:
    """By how much the best final FVU rises when only the best `keep` of the points at this mark go on."""
    kept = mine.nsmallest(max(1, round(len(mine) * keep)), "fvu")
    return float(kept["final"].min() / mine["final"].min() - 1)


def concordant(mine: pd.DataFrame, close: float) -> tuple[int, int]:
    """Pairs of points that the mark orders as the end does, and pairs; of those that end closer than `close`."""
    right = pairs = 0
    for a, b in itertools.combinations(mine[["fvu", "final"]].to_numpy().tolist(), 2):
        if abs(a[1] - b[1]) < close * min(a[1], b[1]):
            pairs += 1
            right += (a[0] < b[0]) == (a[1] < b[1])
    return right, pairs


def measure(mine: pd.DataFrame) -> dict[str, float]:
    """One stratum at one mark."""
    winner = mine["final"].idxmin()
    right, pairs = concordant(mine, float("inf"))
    close_right, close_pairs = concordant(mine, CLOSE)
    return {
        "points": len(mine),
        "spearman": mine["fvu"].rank().corr(mine["final"].rank()),
        "winner_rank": int(mine["fvu"].rank(method="min")[winner]),
        "regret_half": regret(mine, 1 / 2),
        "regret_third": regret(mine, 1 / 3),
        "best_over_final": mine["fvu"].min() / mine["final"].min(),
        "right": right,
        "pairs": pairs,
        "close_right": close_right,
        "close_pairs": close_pairs,
    }


def summarise(strata: pd.DataFrame) -> pd.DataFrame:
    """Over strata, a row per mark."""
    rows = []
    for share, rows_here in strata.groupby("share"):
        half, third = rows_here["regret_half"], rows_here["regret_third"]
        total = rows_here[["right", "pairs", "close_right", "close_pairs"]].sum()
        rows.append(
            {
                "share of budget": f"{share:.0%}",
                "Spearman, mean": f"{rows_here['spearman'].mean():.2f}",
                "lowest": f"{rows_here['spearman'].min():.2f}",
                "pairs ordered right": f"{total['right'] / total['pairs']:.0%}",
                f"pairs within {CLOSE:.0%}": f"{total['close_right'] / total['close_pairs']:.0%}",
                "winner in the better half": f"{(half == 0).sum()} of {len(half)}",
                "regret, mean": f"{half.mean():.2%}",
                "highest": f"{half.max():.2%}",
                "winner in the best third": f"{(third == 0).sum()} of {len(third)}",
                "regret of thirds, mean": f"{third.mean():.2%}",
                "highest ": f"{third.max():.2%}",
            }
        )
    return pd.DataFrame(rows)


def by_type(strata: pd.DataFrame) -> pd.DataFrame:
    """Spearman, a row per stratum, a column per mark."""
    table = strata.pivot(index="stratum", columns="share", values="spearman")
    table.columns = [f"{share:.0%}" for share in table.columns]
    return table.map("{:.2f}".format).reset_index()


def markdown(table: pd.DataFrame) -> str:
    rows = [table.columns.tolist(), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows) + "\n"


def draw(strata: pd.DataFrame, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (kind, rows) in enumerate(strata.groupby("type")):
        for axes, column, scale in ((left, "spearman", 1), (right, "regret_half", 100)):
            for _, mine in rows.groupby("stratum"):
                axes.plot(mine["share"] * 100, mine[column] * scale, color=f"C{index}", lw=0.8, alpha=0.35)
            mean = rows.groupby("share")[column].mean()
            axes.plot(mean.index * 100, mean * scale, color=f"C{index}", lw=2, marker="o", ms=3, label=kind)
    left.set(ylabel="Spearman(FVU at the mark, final FVU)", ylim=(min(0, left.get_ylim()[0]), 1.03))
    right.set(ylabel="best final FVU lost by stopping the worse half, %")
    for axes in (left, right):
        axes.set(xlabel="share of the budget, %", xlim=(0, 100))
        axes.grid(alpha=0.3)
    left.legend(title="thick: mean, thin: each stratum", title_fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", nargs="?", default="early_signal")
    parser.add_argument("--runs-dir")
    parser.add_argument("--into", type=Path, default=HERE, help="where to write (default: beside this script)")
    args = parser.parse_args()
    found = curves(args.sweep, args.runs_dir)
    strata = pd.DataFrame(
        [
            {"type": kind, "stratum": stratum, "share": share, **measure(mine)}
            for (kind, stratum, share), mine in found.groupby(["type", "stratum", "share"])
        ]
    )
    asked = strata[strata["share"].isin(SHARES)]
    summary = summarise(asked)
    strata.to_csv(args.into / "strata.csv", index=False, float_format="%.5g")
    summary.to_csv(args.into / "summary.csv", index=False)
    text = f"{markdown(summary)}\nSpearman of each stratum:\n\n{markdown(by_type(asked))}"
    (args.into / "summary.md").write_text(text, encoding="utf-8")
    draw(strata, args.into / "curves.png")
    print(text)


if __name__ == "__main__":
    main()
