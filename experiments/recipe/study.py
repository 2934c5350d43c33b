"""Train what a file of settings asks for, one after the other, and append what came of it.

    python study.py settings.jsonl results.jsonl

A line is a JSON object: corpus, kind, dict_size, k or L0, samples, seed, and fields of the SAE's config (`sae`) and of
TrainConfig (`train`) that differ from the defaults; `plain` decays all of W_enc; `cut` keeps the embeddings' first
coordinates only; `peer` trains another project's SAE instead (peers.py). Lines whose
result is there already are skipped, so that the same command resumes. Seconds are processor time of one thread.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from corpora import Corpus, Rows, corpus
from peers import train_peer
from scipy.stats import rankdata

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.saes import SAE
from saebench.trial.evaluation import evaluate
from saebench.trial.probing import _probe, strongest
from saebench.trial.trainer import Training, train

DEFAULTS: dict[str, Any] = {
    "corpus": "wnp-minilm",
    "kind": "topk",
    "dict_size": 1536,
    "k": 32,
    "samples": 51_200,
    "seed": 0,
}
CLASS_ROWS = 6_000


def run(setting: dict[str, Any]) -> dict[str, float]:
    """What one training gives: hold-out FVU, FVU of rows trained on, L0, latents that never fire there, seconds."""
    s = DEFAULTS | setting
    texts = corpus(s["corpus"], s.get("limit"))
    if cut := s.get("cut"):
        texts = texts._replace(train=texts.train[:, :cut].contiguous(), holdout=texts.holdout[:, :cut].contiguous())
    if "peer" in s:
        return train_peer(s, texts)
    kind = SAE_CONFIGS[s["kind"]]
    config = kind(dict_size=s["dict_size"], **{_sparsity(s["kind"]): s["k"]}, **s.get("sae", {}))
    fields = TrainConfig(samples=s["samples"], **s.get("train", {}))
    store = Rows(texts, fields.batch_size, s["seed"])
    started = time.process_time()
    training = Training.start(config, fields, s["seed"], store)
    if s.get("plain"):
        training.sae.decay_encoder = partial(_decay_all, training.sae)
    deque(train(training, store), maxlen=0)
    training.calibrate()
    seconds = time.process_time() - started
    seen = Corpus(texts.train, texts.train[-2000:], texts.train_labels, texts.train_labels[-2000:])
    values, known = (evaluate(training.sae, Rows(part, 1, 0)).values for part in (texts, seen))
    found = {
        "fvu": values["eval/fvu"],
        "train_fvu": known["eval/fvu"],
        "l0": values["eval/l0"],
        "dead": values["eval/dead_features"],
        "lr": training.lr,
        "steps": training.steps,
        "seconds": seconds,
    }
    return found | (classes(training.sae, texts) if s.get("classes") else {})


def _decay_all(sae: SAE, share: float) -> None:
    """Plain decay: what was tried before only the part orthogonal to the decoder was shrunk."""
    with torch.no_grad():
        sae.W_enc.mul_(1 - share)


def _sparsity(kind: str) -> str:
    return "k" if "k" in SAE_CONFIGS[kind].model_fields else "target_l0"


@torch.no_grad()
def classes(sae: SAE, texts: Corpus) -> dict[str, float]:
    """Means over the classes of the labels: AUROC on the hold-out of the latent that is best on training rows, and of
    a logistic regression on the five latents whose means differ most."""
    here, there = sae.encode(texts.train[:CLASS_ROWS]).numpy(), sae.encode(texts.holdout).numpy()
    labels, truth = texts.train_labels[:CLASS_ROWS], texts.holdout_labels
    ranks, best, five = rankdata(here, axis=0), [], []
    for name in pd.unique(labels):
        positive, test = labels == name, truth == name
        if positive.sum() < 30 or test.sum() < 10:
            continue
        latent = int(np.argmax(ranks[positive].sum(0)))
        best.append(_auroc(there[:, latent], test))
        gaps = np.abs(here[positive].mean(0) - here[~positive].mean(0))
        (some,) = strongest(gaps[None], 5)
        five.append(_probe(here[:, some], positive, there[:, some], test)[0])
    return {"best_latent": float(np.mean(best)), "five_latents": float(np.mean(five)), "classes": len(best)}


def _auroc(score: np.ndarray, positive: np.ndarray) -> float:
    yes, no = positive.sum(), (~positive).sum()
    return float((rankdata(score)[positive].sum() - yes * (yes + 1) / 2) / (yes * no))


def main(settings: Path, results: Path) -> None:
    torch.set_num_threads(1)
    done = [json.loads(line)["setting"] for line in results.read_text().splitlines()] if results.exists() else []
    for line in settings.read_text().splitlines():
        setting = json.loads(line)
        if setting not in done:
            with results.open("a") as file:
                print(json.dumps({"setting": setting, **run(setting)}), file=file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
