"""TopK and BatchTopK along k on the known truth: where each metric has its optimum, and where the truth has it.

    python along_k.py DATA along_k.csv

Two seeds per point; a row has their means. What was measured is in along_k.csv, how to read it in README.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measure import matched, sae_scores
from study import BUDGET, Rows

from saebench.config import SAE_CONFIGS
from saebench.trial.decoder import mean_absolute_cosine
from saebench.trial.trainer import Training, train

LEVELS, WIDTHS, SEEDS = (2, 4, 6, 8, 12, 16, 32), (128, 256), (0, 1)


def main(data: Path, out: Path) -> None:
    """Train and measure every point."""
    world, x = dict(np.load(data / "truth.npz")), torch.from_numpy(np.load(data / "embeddings.npy"))
    fresh, found = torch.from_numpy(world["x"]), []
    for kind in ("batchtopk", "topk"):
        for width in WIDTHS:
            for k in LEVELS:
                measured, decoders = [], []
                for seed in SEEDS:
                    rows = Rows(x, [], seed)
                    sae = SAE_CONFIGS[kind].model_validate({"dict_size": width, "k": k})
                    training = Training.start(sae, BUDGET, seed, rows)
                    for _ in train(training, rows):
                        pass
                    training.calibrate()
                    truth, live = sae_scores(training.sae, world)
                    with torch.no_grad():
                        left = (fresh - training.sae(fresh)).square().sum() / (fresh - fresh.mean(0)).square().sum()
                    dead = 1 - len(live) / width
                    c_dec = mean_absolute_cosine(torch.from_numpy(live))
                    measured.append({"fvu": float(left), "c_dec": c_dec, "dead": dead} | truth)
                    decoders.append(live)
                means = pd.DataFrame(measured).mean().to_dict()
                found.append({"arm": kind, "width": width, "k": k} | means | {"stability": matched(*decoders)})
                pd.DataFrame(found).to_csv(out, index=False, float_format="%.4f")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
