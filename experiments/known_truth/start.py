"""What the start (`start: data` or `components`) does to features that are known.

    python start.py DATA start.csv [SEEDS]     # the same command resumes

Every trained arm of study.py but the controls, at the true k of 8 (hierarchical_topk: trained with 16, read at 8),
256 and 128 latents, default learning rates; a row per arm, width, start and seed.
"""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import sae_scores
from study import ARMS, Rows, trained

from saebench.trial.evaluation import evaluate

LEVEL, WIDTHS, STARTS = 8, (256, 128), ("data", "components")


def row(arm: str, width: int, start: str, seed: int, rows: Rows, world: dict[str, np.ndarray]) -> dict[str, object]:
    """Train one SAE and measure it on rows that it has not seen."""
    level = 2 * LEVEL if arm == "hierarchical_topk" else LEVEL
    sae = trained(arm, level, width, rows, seed, start=start)
    values = evaluate(sae, rows, (), "test").values
    fvu = values.get(f"test/fvu_at/{LEVEL}", values["test/fvu"])
    scores, _ = sae_scores(sae, world, LEVEL if level > LEVEL else None)
    found = {"arm": arm, "width": width, "start": start, "seed": seed, "fvu": fvu}
    return found | {"dead": values["test/dead_features"] / width} | scores


def main(data: Path, out: Path, seeds: int = 4) -> None:
    """Add what `out` lacks."""
    world, x = dict(np.load(data / "truth.npz")), torch.from_numpy(np.load(data / "embeddings.npy"))
    labels = [str(label) for label in np.load(data / "labels.npy")]
    known = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=["arm", "width", "start", "seed"])
    there = set(known[["arm", "width", "start", "seed"]].itertuples(index=False, name=None))
    arms = [arm for arm in ARMS if "control" not in ARMS[arm][1]]
    for seed, arm, width, start in product(range(seeds), arms, WIDTHS, STARTS):
        if (arm, width, start, seed) not in there:
            found = pd.DataFrame([row(arm, width, start, seed, Rows(x, labels, seed), world)])
            found.to_csv(out, mode="a", header=not out.is_file(), index=False, float_format="%.5g")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
