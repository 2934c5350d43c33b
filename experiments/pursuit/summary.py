"""Tables of README.md from results.csv: each arm at the rate that was best on validation, mean and range over seeds.

python experiments/pursuit/summary.py results.csv [--decoders FOLDER]
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

SETTING = ["corpus", "k", "dict_size"]
SHOWN = {"fvu": 3, "l0": 1, "dead": 0, "neighbours": 3, "stability": 2, "stability_largest": 2, "auc_1": 3, "auc_5": 3}
NAMES = {
    "fvu": "FVU",
    "l0": "L0",
    "stability": "kept",
    "stability_largest": "largest eighth",
    "auc_1": "best",
    "auc_5": "five",
}
MATCHED = 0.7


def chosen(rows: pd.DataFrame) -> pd.DataFrame:
    """Of every setting, arm and seed the row of the rate that was best on validation with seed 0."""
    kept = []
    for _, some in rows.groupby([*SETTING, "arm"], sort=False):
        searched = some[some.seed == 0]
        best = searched.loc[searched.validation_fvu.idxmin(), "factor"] if len(searched) else some.factor.iloc[0]
        kept.append(some[some.factor.isna() | (some.factor == best)])
    return pd.concat(kept)


def shared(folder: Path, corpus: str, arm: str, k: int, dict_size: int) -> str:
    """Share of decoder rows with a partner above cosine MATCHED in another seed, mean over pairs of seeds."""
    name = f"{corpus}.{arm.replace(' ', '_').replace('/', 'over')}.{k}.{dict_size}.*.npy"
    found = [np.load(file).astype(np.float32) for file in sorted(folder.glob(name))]
    units = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in found]
    shares = [((a @ b.T).max(1) > MATCHED).mean() for a, b in combinations(units, 2)]
    return f"{np.mean(shares):.2f}" if shares else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--decoders", type=Path)
    args = parser.parse_args()
    rows = chosen(pd.read_csv(args.results))
    for (corpus, k, dict_size), some in rows.groupby(SETTING, sort=False):
        head = " | ".join(NAMES.get(name, name) for name in SHOWN)
        print(f"\n### {corpus}, k {k} of {dict_size}\n\n| arm | seeds | {head} | found again |")
        print(f"| --- | --- | {' | '.join('---:' for _ in SHOWN)} | ---: |")
        means = some.groupby("arm", sort=False)[list(SHOWN)].mean()
        for arm in means.sort_values("fvu").index:
            values = some[some.arm == arm]
            cells = [shown(values[name], digits) for name, digits in SHOWN.items()]
            again = shared(args.decoders, corpus, arm, k, dict_size) if args.decoders else ""
            print(f"| {arm} | {len(values)} | {' | '.join(cells)} | {again} |")


def shown(values: pd.Series, digits: int) -> str:
    """The mean; with several seeds, half the range behind it."""
    mean = f"{values.mean():.{digits}f}"
    half = (values.max() - values.min()) / 2
    return f"{mean} ± {half:.{digits}f}" if len(values) > 1 and round(half, digits) else mean


if __name__ == "__main__":
    main()
