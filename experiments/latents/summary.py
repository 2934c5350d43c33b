"""Tables of README.md out of scores-*.csv: mean and 95% t interval over seeds, floors, and what goes with FVU.

python experiments/latents/summary.py scores-*.csv
"""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
from scipy.stats import spearmanr, t

FLOORS = ["random", "raw", "pca"]


def main() -> None:
    frame = pd.concat([pd.read_csv(path) for path in sys.argv[1:]])
    for sweep, some in frame.groupby("sweep", sort=False):
        print(f"\n### {sweep}\n")
        arms = list(dict.fromkeys(some["arm"]))
        best = " | ".join(arms)
        print(f"| score | {best} | random directions | coordinates | components |")
        print(f"| --- |{' --- |' * (len(arms) + 3)}")
        fvu = some.drop_duplicates(["arm", "seed"])
        print(f"| FVU | {' | '.join(shown(fvu.loc[fvu['arm'] == a, 'fvu']) for a in arms)} | | | |")
        for score, rows in some.groupby("score", sort=False):
            cells = [shown(rows.loc[rows["arm"] == a, "value"]) for a in arms]
            floors = [f"{rows[f].mean():.3f}" for f in FLOORS]
            print(f"| `{score}` | {' | '.join([*cells, *floors])} |")
        print("\nPaired by seed, the second arm less the first:\n")
        for score, rows in some.groupby("score", sort=False):
            wide = rows.pivot(index="seed", columns="arm", values="value")
            for other in arms[1:]:
                print(f"- `{score}`, {other} less {arms[0]}: {shown((wide[other] - wide[arms[0]]).dropna())}")
        wide = some.pivot(index=["arm", "seed"], columns="score", values="value")
        wide["fvu"] = fvu.set_index(["arm", "seed"])["fvu"]
        for score in [c for c in wide if c != "fvu" and wide[c].nunique() > 1]:
            found = spearmanr(wide[score], wide["fvu"]).statistic
            print(f"- rank correlation of `{score}` with FVU over {len(wide)} SAEs: {found:.2f}")


def shown(values: pd.Series) -> str:
    numbers = np.asarray(values, float)
    if len(numbers) < 2:
        return f"{numbers.mean():.3f}"
    half = t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / np.sqrt(len(numbers))
    return f"{numbers.mean():.3f} ± {half:.3f}"


if __name__ == "__main__":
    main()
