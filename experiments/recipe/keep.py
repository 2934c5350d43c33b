"""Does keeping the SAE of the best validation mark help, and can it hurt? The same trainings, both ways.

    python keep.py results.csv wnp-minilm boto-minilm

The held-out texts are cut in two: one half chooses among twenty marks, the other measures. Few texts and many epochs
are where memory sets in; many texts are where nothing should change.
Columns: corpus, training texts, examples, type, seed, FVU of the last and of the best mark, where that was (share).
"""

from __future__ import annotations

import csv
import itertools
import sys
from pathlib import Path

import torch
from corpora import Corpus, Rows, corpus

from saebench.config import SAE_CONFIGS, TrainConfig, default_batch_size, marks
from saebench.trial.best import BestMark
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, steps

CASES = [  # training texts (None: all), examples
    (2_683, 25_600), (2_683, 150_000), (600, 25_600), (None, 51_200), (None, 204_800),
]  # fmt: skip
TYPES = ["topk", "jumprelu"]


def run(texts: Corpus, kind: str, samples: int, seed: int) -> dict[str, float]:
    """FVU of the last and of the best mark on the half that did not choose."""
    half = len(texts.holdout) // 2
    chooser, judge = (texts._replace(holdout=part) for part in (texts.holdout[:half], texts.holdout[half:]))
    train = TrainConfig(samples=samples, batch_size=default_batch_size(samples))
    store = Rows(chooser, train.batch_size, seed)
    sparsity = "k" if "k" in SAE_CONFIGS[kind].model_fields else "target_l0"
    training = Training.start(SAE_CONFIGS[kind](dict_size=1536, **{sparsity: 32}), train, seed, store)
    best, at = BestMark(training.sae, "best"), marks(train)
    for step in steps(training, store):
        if any(step.before < mark <= step.samples for mark in at):
            training.calibrate()
            best.offer(training.sae, evaluate(training.sae, store).values, step.samples)
    rows = Rows(judge, 1, 0)
    last = evaluate(training.sae, rows).values["eval/fvu"]
    moved = best.restore(training.sae, samples)
    kept = evaluate(training.sae, rows).values["eval/fvu"]
    return {"last": last, "best": kept, "kept_at": best.samples / samples if moved else 1.0}


def main(results: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    done = [line.split(",")[:5] for line in results.read_text().splitlines()] if results.exists() else []
    for name, (texts, samples), kind, seed in itertools.product(names, CASES, TYPES, (0, 1)):
        rows = corpus(name, texts)
        row = [name, str(len(rows.train)), str(samples), kind, str(seed)]
        if row not in done:
            found = run(rows, kind, samples, seed)
            with results.open("a", newline="") as file:
                csv.writer(file).writerow([*row, *(f"{value:.4f}" for value in found.values())])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
