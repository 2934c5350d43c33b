"""What start and decay do beside the FVU: dead latents, latents that another seed finds too, classes.

    RECIPE_DATA=folder python seeds.py seeds.csv wn2-minilm boto-minilm

51,200 examples in batches of 256, 1,536 latents, L0 32, seeds 0 to 2, the default lr. Stability is the report's: the
share of latents, of those that fire on the hold-out, that a latent of another seed matches with a cosine above 0.7.
"""

from __future__ import annotations

import sys
from collections import deque
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from corpora import Corpus, Rows, corpus
from study import classes

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.report.matching import match
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

TYPES = {"topk": "k", "batchtopk": "k", "jumprelu": "target_l0", "vanilla": "target_l0"}
STARTS: dict[str, tuple[dict[str, Any], float | None]] = {
    "random rows, encoder 1, no decay": ({"start": "random", "encoder_scale": 1.0}, 0.0),
    "rows of data, encoder 0.1, no decay": ({"start": "data"}, 0.0),
    "rows of data, encoder 0.1, decay": ({"start": "data"}, None),
    "components, encoder 0.1, decay (default)": ({}, None),
}
SEEDS = (0, 1, 2)


def trained(kind: str, sae: dict[str, Any], decay: float | None, texts: Corpus, seed: int) -> dict[str, Any]:
    config = SAE_CONFIGS[kind].model_validate({"dict_size": 1536, TYPES[kind]: 32, **sae})
    fields = TrainConfig(samples=51_200, batch_size=256, encoder_decay=decay)
    store = Rows(texts, fields.batch_size, seed)
    training = Training.start(config, fields, seed, store)
    deque(train(training, store), maxlen=0)
    training.calibrate()
    found = evaluate(training.sae, store)
    return {
        "rows": training.sae.W_dec.detach().numpy()[found.firing.numpy() > 0],
        "fvu": found.values["eval/fvu"],
        "dead": found.values["eval/dead_features"],
        **classes(training.sae, texts),
    }


def main(out: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    lines = []
    for name in names:
        texts = corpus(name)
        for kind in TYPES:
            for start, (sae, decay) in STARTS.items():
                runs = [trained(kind, sae, decay, texts, seed) for seed in SEEDS]
                shares = [match(a["rows"], b["rows"]).same for a, b in combinations(runs, 2)]
                means = {
                    key: np.mean([run[key] for run in runs]) for key in ("fvu", "dead", "best_latent", "five_latents")
                }
                lines.append({"corpus": name, "type": kind, "start": start, **means, "stability": np.mean(shares)})
                print(lines[-1], flush=True)
                pd.DataFrame(lines).to_csv(out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
