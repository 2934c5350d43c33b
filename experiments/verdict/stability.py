"""How far stability across seeds moves where the learning rate does: is `eval.margin` enough for its search error?

    RECIPE_DATA=folder python experiments/verdict/stability.py stability.csv [CORPUS]   # recipe/corpora.py: the folder

topk, 768 latents, k 32, 51,200 examples, three seeds at five learning rates around the default one.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "recipe"))
from corpora import Rows, corpus

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.report.matching import match
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

FACTORS, SEEDS = (0.5, 0.71, 1.0, 1.41, 2.0), (1, 2, 3)


def main(out: Path, name: str) -> None:
    torch.set_num_threads(1)
    rows = []
    for kind in ("topk", "batchtopk"):
        for factor in FACTORS:
            decoders, fvu = [], []
            for seed in SEEDS:
                settings = TrainConfig(samples=51_200, lr_factor=factor)
                store = Rows(corpus(name), settings.batch_size, seed)
                sae = SAE_CONFIGS[kind].model_validate({"dict_size": 768, "k": 32})
                training = Training.start(sae, settings, seed, store)
                deque(train(training, store), maxlen=0)
                training.calibrate()
                found = evaluate(training.sae, store)
                fvu.append(found.values["eval/fvu"])
                decoders.append(training.sae.W_dec.detach().numpy()[found.firing.numpy() > 0])
            shares = [match(a, b).same for a, b in combinations(decoders, 2)]
            rows.append({"corpus": name, "kind": kind, "lr_factor": factor, "fvu": np.mean(fvu),
                         "stability": np.mean(shares), "lowest": min(shares), "highest": max(shares)})  # fmt: skip
            print(rows[-1], flush=True)
            pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4f")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "boto-minilm")
