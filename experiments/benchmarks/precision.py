"""Does encoding in bfloat16 cost anything once an SAE is trained on it?

    python experiments/benchmarks/precision.py --work /some/folder [--texts 20000] [--seeds 3] [--samples 200000]

Encodes the same texts in float32 and in bfloat16 (autocast), trains TopK and BatchTopK with the same seeds on each, and
evaluates every SAE on both hold-outs. The question is the first column of the result: both SAEs of a pair on the
float32 hold-out, FVU of the one trained on bfloat16 over the other's, less 1. Pairs share initialisation and the order
of the texts; the interval is Student's t over the pairs. For scale: the same ratio between neighbouring seeds of the
float32 SAEs.
"""

from __future__ import annotations

import argparse
import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from saebench.config import SAE_CONFIGS, DataConfig, DatasetConfig, TrainConfig
from saebench.saes import SAE
from saebench.stores import ActivationsStoreSBERT, cache, open_store
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

GLOSSES = Path(__file__).parents[2] / "sweeps" / "data" / "wordnet_glosses.parquet"
PRECISIONS = ("float32", "bfloat16")
TYPES = ("topk", "batchtopk")
Pair = tuple[float, float]
"""One FVU per precision, in the order of PRECISIONS."""


def data(precision: str, texts: int) -> DataConfig:
    return DataConfig(
        model="sentence-transformers/all-MiniLM-L6-v2",
        dataset=DatasetConfig(path="parquet", data_files=str(GLOSSES)),
        num_examples=texts,
        precision=precision,
    )


def store(config: DataConfig, seed: int, batch_size: int, folder: Path) -> ActivationsStoreSBERT:
    return open_store(config, batch_size=batch_size, seed=seed, device="cpu", cache_dir=folder)


def trained(config: DataConfig, kind: str, seed: int, samples: int, folder: Path) -> SAE:
    sae = SAE_CONFIGS[kind].model_validate({"k": 16, "dict_size": 1536})
    budget = TrainConfig(samples=samples, batch_size=1024, lr=2e-3)
    rows = store(config, seed, budget.batch_size, folder)
    training = Training.start(sae, budget, seed, rows)
    for _ in train(training, rows):
        pass
    training.calibrate()
    return training.sae


def fvus(sae: SAE, configs: list[DataConfig], folder: Path) -> Pair:
    """FVU on the hold-outs of both precisions."""
    first, second = (evaluate(sae, store(config, 0, 1024, folder)).values["eval/fvu"] for config in configs)
    return first, second


def interval(ratios: list[float]) -> str:
    """Mean of the relative differences with its 95% interval, in per cent."""
    half = stats.t.ppf(0.975, len(ratios) - 1) * np.std(ratios, ddof=1) / np.sqrt(len(ratios))
    return f"{100 * np.mean(ratios):+.3f}% ± {100 * half:.3f}%"


def main(work: Path, texts: int, seeds: int, samples: int) -> None:
    configs = [data(precision, texts) for precision in PRECISIONS]
    for config in configs:
        entry = cache.build(config, work)
        print(f"{config.precision}: {entry.num_train:,} to train on, {entry.num_test:,} for test", flush=True)
    one, other = (torch.cat(list(store(config, 0, 1024, work).test())) for config in configs)
    cosine = torch.nn.functional.cosine_similarity(one, other)
    print(f"cosine of the hold-outs: mean {cosine.mean():.6f}, smallest {cosine.min():.6f}\n", flush=True)
    print("| type | seed | trained on | FVU on float32 | FVU on bfloat16 |\n|---|---|---|---|---|", flush=True)
    on_float32: dict[str, list[Pair]] = {kind: [] for kind in TYPES}
    on_own: dict[str, list[Pair]] = {kind: [] for kind in TYPES}
    for kind in TYPES:
        for seed in range(seeds):
            results = [fvus(trained(config, kind, seed, samples, work), configs, work) for config in configs]
            for precision, (exact, lower) in zip(PRECISIONS, results, strict=True):
                print(f"| {kind} | {seed} | {precision} | {exact:.6f} | {lower:.6f} |", flush=True)
            on_float32[kind].append((results[0][0], results[1][0]))
            on_own[kind].append((results[0][0], results[1][1]))
    print("\n| type | both on the float32 hold-out | each on its own | next seed, float32 |\n|---|---|---|---|")
    for name, kinds in {**{kind: (kind,) for kind in TYPES}, "both": TYPES}.items():
        columns = [[b / a - 1 for kind in kinds for a, b in table[kind]] for table in (on_float32, on_own)]
        columns.append([abs(b[0] / a[0] - 1) for kind in kinds for a, b in pairwise(on_float32[kind])])
        print(f"| {name} | {interval(columns[0])} | {interval(columns[1])} | {100 * np.mean(columns[2]):.3f}% |")
    print(f"\n{seeds} seeds, {samples:,} samples, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the cache")
    parser.add_argument("--texts", type=int, default=20_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200_000)
    arguments = parser.parse_args()
    main(arguments.work, arguments.texts, arguments.seeds, arguments.samples)
