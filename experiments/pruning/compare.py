"""The same sweep with and without pruning: does it find the same best points, and for how much training?

python experiments/pruning/compare.py REFERENCE:SWEEP[:TRIALS]... [--seeds SWEEP] [--runs-dir DIR]

Names or paths. Of each pair, REFERENCE is the sweep in which nothing was stopped; TRIALS: as both stood with that many
trials. With `--seeds`, a sweep of the best points (of both) with more seeds than the pairs have: where a pair found
different best points, the difference of their log FVU over the seeds and its 95% interval (paired: a seed fixes
initialisation and order of data). Prints markdown and writes results.csv and seeds.csv beside this script.
"""

from __future__ import annotations

import argparse
import math
from functools import cache
from pathlib import Path

import pandas as pd
from scipy import stats

import saebench.report

HERE = Path(__file__).parent


@cache
def read(sweep: str, runs_dir: str | None) -> pd.DataFrame:
    """A row per trial: stratum, point, state, lr, final fvu, spent (examples seen at its last evaluation)."""
    report = saebench.report.load(sweep, runs_dir=runs_dir)
    spent = report.curves.groupby("run_id")["samples"].max().rename("spent")
    frame = report.frame.merge(spent, left_on="run_id", right_index=True, how="left")
    return frame.assign(spent=frame["spent"].fillna(0))


def best_of(frame: pd.DataFrame) -> pd.Series:
    complete = frame[frame["state"] == "complete"]
    return complete.loc[complete["eval/fvu"].idxmin()]


def compared(pair: str, runs_dir: str | None) -> list[dict[str, object]]:
    """A row per stratum of the pair."""
    first_name, name, *most = pair.split(":")
    reference, pruned = (read(sweep, runs_dir) for sweep in (first_name, name))
    if most:
        reference, pruned = (frame[frame["trial"].astype(int) < int(most[0])] for frame in (reference, pruned))
    assert set(pruned["point"]) == set(reference["point"]), f"{pair}: not the same points"
    rows = []
    for stratum in sorted(set(reference["stratum"])):
        whole, mine = (frame[frame["stratum"] == stratum] for frame in (reference, pruned))
        first, best = best_of(whole), best_of(mine)
        rows.append(
            {
                "sweep": Path(name).name,
                "trials": len(pruned),
                "stratum": stratum,
                "complete": int((mine["state"] == "complete").sum()),
                "pruned": int((mine["state"] == "pruned").sum()),
                "training": mine["spent"].sum(),
                "of": whole["spent"].sum(),
                "share of the training": mine["spent"].sum() / whole["spent"].sum(),
                "best FVU, nothing stopped": first["eval/fvu"],
                "best FVU": best["eval/fvu"],
                "best point, nothing stopped": first["point"],
                "best point": best["point"],
                "regret": best["eval/fvu"] / first["eval/fvu"] - 1,
            }
        )
    return rows


def with_more_seeds(seeds: str, pairs: list[str], runs_dir: str | None) -> pd.DataFrame:
    """The complete trials of the points that the sweep `seeds` has, of all sweeps."""
    more = read(seeds, runs_dir)
    frames = [more, *(read(name, runs_dir) for pair in pairs for name in pair.split(":")[:2])]
    trials = pd.concat([f[f["point"].isin(more["point"]) & (f["state"] == "complete")] for f in frames])
    return trials.drop_duplicates(["point", "seed"])


def interval(seeds: pd.DataFrame, one: str, other: str) -> tuple[float, float, float]:
    """(mean, low, high) of FVU(other) / FVU(one) - 1 over the seeds that both have, paired."""
    table = seeds.pivot_table(index="seed", columns="point", values="eval/fvu")[[one, other]].dropna()
    ratio = table.map(math.log).diff(axis=1).iloc[:, 1]
    half = stats.t.ppf(0.975, len(ratio) - 1) * ratio.std() / math.sqrt(len(ratio))
    return (math.expm1(ratio.mean()), math.expm1(ratio.mean() - half), math.expm1(ratio.mean() + half))


def spread(seeds: pd.DataFrame) -> pd.DataFrame:
    """A row per point: how far its FVU goes over the seeds."""
    grouped = seeds.groupby(["stratum", "point"])["eval/fvu"]
    table = grouped.agg(["count", "mean", "std", "min", "max"]).reset_index()
    return table.assign(spread=table["max"] / table["min"] - 1)


def markdown(table: pd.DataFrame) -> str:
    lines = [table.columns.tolist(), ["---"] * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append([f"{value:.4g}" if isinstance(value, float) else str(value) for value in row])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="REFERENCE:SWEEP[:TRIALS]")
    parser.add_argument("--seeds")
    parser.add_argument("--runs-dir")
    args = parser.parse_args()
    table = pd.DataFrame([row for pair in args.pairs for row in compared(pair, args.runs_dir)])
    if args.seeds:
        seeds = with_more_seeds(args.seeds, args.pairs, args.runs_dir)
        said = spread(seeds)
        said.to_csv(HERE / "seeds.csv", index=False, float_format="%.6g")
        print(markdown(said) + "\n")
        found = [
            interval(seeds, one, other) if one != other else (0.0, 0.0, 0.0)
            for one, other in zip(table["best point, nothing stopped"], table["best point"], strict=True)
        ]
        table[["over seeds", "low", "high"]] = found
    table.to_csv(HERE / "results.csv", index=False, float_format="%.6g")
    for (sweep, trials), row in table.groupby(["sweep", "trials"], sort=False)[["training", "of"]].sum().iterrows():
        spent, whole = row["training"], row["of"]
        print(f"{sweep}, {trials} trials: {spent:,.0f} of {whole:,.0f} examples = {spent / whole:.1%}")
    print("\n" + markdown(table.drop(columns=["training", "of"])))


if __name__ == "__main__":
    main()
