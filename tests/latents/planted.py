"""A corpus whose truth is known: texts of topics, embeddings that are sums of the topics' directions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stores.corpora import write_jsonl

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.runs.paths import SweepPaths, TrialPaths
from saebench.saes import save_sae
from saebench.saes.topk import TopKSAE

TOPICS = {
    "water": ["river", "stream", "flood", "rapids", "canal", "harbour"],
    "dogs": ["hound", "puppy", "kennel", "leash", "barking", "terrier"],
    "music": ["violin", "sonata", "chord", "melody", "orchestra", "tempo"],
    "stars": ["planet", "comet", "orbit", "galaxy", "nebula", "eclipse"],
    "bread": ["flour", "yeast", "oven", "dough", "crust", "bakery"],
    "law": ["court", "verdict", "judge", "appeal", "statute", "jury"],
    "trees": ["oak", "birch", "timber", "forest", "acorn", "sapling"],
    "trade": ["market", "tariff", "export", "cargo", "merchant", "customs"],
}
FILLERS = ["the", "of", "and", "with", "for", "that"]
D_IN, NOISE = 24, 0.08
NAMES = list(TOPICS)
DIRECTIONS = np.linalg.qr(np.random.default_rng(5).standard_normal((D_IN, D_IN)))[0][: len(TOPICS)].astype(np.float32)


def texts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of `count` different texts: one topic (the label) in four of its words, every third text with words of a
    second one, and fillers in between; `length` is a numeric target that grows with music."""
    draw, rows = np.random.default_rng(seed), []
    for i in range(count):
        first, second = draw.choice(len(NAMES), 2, replace=False)
        words = list(draw.choice(TOPICS[NAMES[first]], 4, replace=False))
        words += list(draw.choice(TOPICS[NAMES[second]], 2, replace=False)) if i % 3 == 0 else []
        words += list(draw.choice(FILLERS, 4))
        draw.shuffle(words)
        target = 2.0 * (NAMES[first] == "music") + draw.normal()
        rows.append({"text": f"{' '.join(words)} {i}", "label": NAMES[first], "length": target, "same": 1})
    return rows


class PlantedModel:
    """Encoder of these texts: the topics' directions, each as often as its words occur, and noise by the text's hash.
    `words`: the second encoder, a bag of random vectors of words."""

    max_seq_length = None

    def __init__(self, *, words: bool = False) -> None:
        self._words = words
        self._topic = {word: i for i, name in enumerate(NAMES) for word in TOPICS[name]}

    def eval(self) -> PlantedModel:
        return self

    def preprocess(self, texts: Sequence[str], prompt: str | None = None) -> dict[str, Any]:
        return {"rows": torch.tensor(np.stack([self.row((prompt or "") + text) for text in texts]))}

    def row(self, text: str) -> np.ndarray:
        draw = np.random.default_rng(int(hashlib.sha256(text.encode()).hexdigest()[:12], 16))
        if self._words:
            return np.sum([_vector(word) for word in text.split()], axis=0, dtype=np.float32)
        row = NOISE * draw.standard_normal(D_IN)
        for word in text.split():
            if word in self._topic:
                row = row + 0.3 * DIRECTIONS[self._topic[word]]
        return row.astype(np.float32)

    def __call__(self, features: Mapping[str, Any]) -> dict[str, Any]:
        return {"sentence_embedding": features["rows"]}


def _vector(word: str) -> np.ndarray:
    seed = int(hashlib.sha256(word.encode()).hexdigest()[:8], 16)
    topic = next((i for i, name in enumerate(NAMES) if word in TOPICS[name]), None)
    shared = np.zeros(16) if topic is None else np.random.default_rng(topic).standard_normal(16)
    return shared + 0.5 * np.random.default_rng(seed).standard_normal(16)


def data_config(folder: Path, rows: Sequence[Any], **changes: Any) -> DataConfig:
    file = write_jsonl(folder / "texts.jsonl", rows)
    dataset = DatasetConfig(path="json", data_files=str(file), label_column=changes.pop("label_column", "label"))
    return DataConfig(**{"model": "planted", "num_examples": 100_000, "holdout": 0.4, **changes}, dataset=dataset)


def trial_config(data: DataConfig, number: int = 0, seed: int = 0, k: int = 2, dict_size: int = 24) -> TrialConfig:
    return TrialConfig(
        sweep="demo", number=number, stratum="topk-k2", point="p", seed=seed, data=data,
        sae=TopKConfig(k=k, dict_size=dict_size, preprocess="none"),
        train=TrainConfig(samples=8_000, batch_size=64, lr=3e-3),
    )  # fmt: skip


def planted_sae(seed: int = 0, k: int = 2, dict_size: int = 24) -> TopKSAE:
    """Latent i of the first eight reads and writes topic i; the others point anywhere."""
    sae = TopKSAE(TopKConfig(k=k, dict_size=dict_size, preprocess="none"), D_IN)
    rest = np.random.default_rng(100 + seed).standard_normal((dict_size, D_IN)).astype(np.float32)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    rest[: len(NAMES)] = DIRECTIONS
    with torch.no_grad():
        sae.W_dec.copy_(torch.tensor(rest))
        sae.W_enc.copy_(torch.tensor(rest).t())
        sae.b_enc[len(NAMES) :] = -0.3
    return sae.eval().requires_grad_(False)


def write_trial(runs: Path, config: TrialConfig, sae: Any) -> TrialPaths:
    """As a trial leaves it in runs/demo/trials/NNNN."""
    paths = SweepPaths(runs / config.sweep).trial(config.number)
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(config.model_dump_json())
    save_sae(sae, paths.sae)
    return paths
