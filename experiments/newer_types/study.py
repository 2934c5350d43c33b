"""The newer types against batchtopk at equal L0, in one process: search, then seeds that compare.

    RECIPE_DATA=folder python study.py trials.csv [SEEDS] [CORPUS ...]     # recipe/corpora.py makes the folder

Per corpus, arm and level: seed 0 tries the default learning rate times six factors from 0.35 to 2 and up to two points
where the product would refine, and one is chosen by validation FVU as the product does (`saebench/response.py`);
seeds 1 to SEEDS train that alone, and are measured on the test part. The same command resumes.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "recipe"))
from corpora import Corpus, corpus
from corpora import Rows as Served

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.response import Axis, Measured, choose, propose
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

CORPORA = ("boto-minilm", "wn2-minilm", "boto-glove", "deb-minilm")
FACTORS, RANGE, REFINED = (0.35, 0.5, 0.71, 1.0, 1.41, 2.0), (0.25, 4.0), 2
WIDTH, SAMPLES = 512, 51_200
ORTHO = (0.03, 0.1, 0.3)
ARMS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "batchtopk": ("batchtopk", {}, (8, 32)),
    "abs_topk": ("abs_topk", {}, (8, 32)),
    "hierarchical_topk": ("hierarchical_topk", {}, (32,)),
    "batchtopk k_start": ("batchtopk", {"k_start": 32}, (8,)),
    "batchtopk ortho": ("batchtopk", {"ortho_coeff": None}, (8, 32)),
}
"""Arm -> type, fields (None: chosen among ORTHO by validation FVU at the default learning rate), levels."""
KEPT = (
    "fvu",
    "l0",
    "dead_fraction",
    "knn_overlap_at_10",
    "probing_auc_k1",
    "probing_auc_k5",
    "code_stability",
    "c_dec",
)
COLUMNS = ("corpus", "arm", "level", "trained", "seed", "role", "coeff", "factor", "gap", "edge", "validation_fvu",
           *KEPT, "seconds")  # fmt: skip


class Rows(Served):
    """The store of recipe/: one half of the hold-out chooses, the other judges."""

    def __init__(self, texts: Corpus, batch_size: int, seed: int) -> None:
        super().__init__(texts, batch_size, seed)
        self._texts = texts

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(torch.split(self._texts.holdout[::2], batch_size))

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(torch.split(self._texts.holdout[1::2], batch_size))

    def train_labels(self, n: int) -> Any:
        return list(self._texts.train_labels[:n])

    def validation_labels(self) -> Any:
        return list(self._texts.holdout_labels[::2])

    def test_labels(self) -> Any:
        return list(self._texts.holdout_labels[1::2])


def trial(
    texts: Corpus, arm: str, level: int, seed: int, factor: float, coeff: float, role: str
) -> list[dict[str, Any]]:
    """Train and measure one point; a row per level that it serves."""
    kind, fields, _ = ARMS[arm]
    fields = {name: coeff if value is None else value for name, value in fields.items()}
    sae = SAE_CONFIGS[kind].model_validate({"dict_size": WIDTH, "k": level, **fields})
    settings = TrainConfig(samples=SAMPLES, lr_factor=factor)
    store, begun = Rows(texts, settings.batch_size, seed), time.process_time()
    training = Training.start(sae, settings, seed, store)
    deque(train(training, store), maxlen=0)
    training.calibrate()
    seconds = time.process_time() - begun
    row = {"arm": arm, "level": level, "trained": level, "seed": seed, "role": role, "coeff": coeff, "factor": factor,
           "seconds": seconds, "validation_fvu": evaluate(training.sae, store).values["eval/fvu"]}  # fmt: skip
    if role != "compare":
        return [row]
    found = evaluate(training.sae, store, ("knn_overlap_at_10", "probing"), "test").values
    rows = [row | {name: found[f"test/{name}"] for name in KEPT}]
    for k in (8,):
        if f"test/fvu_at/{k}" in found and k < level:
            rows.append(row | {"level": k, "fvu": found[f"test/fvu_at/{k}"], "l0": found[f"test/l0_at/{k}"]})
    return rows


class Table:
    """The file of results: what is there is not trained again."""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name, self.texts = file, name, corpus(name)

    def losses(self, arm: str, level: int, role: str) -> pd.DataFrame:
        if not self.file.is_file():
            return pd.DataFrame(columns=list(COLUMNS))
        f = pd.read_csv(self.file)
        return f[
            (f.corpus == self.name) & (f.arm == arm) & (f.trained == level) & (f.level == level) & (f.role == role)
        ]

    def add(self, arm: str, level: int, seed: int, factor: float, coeff: float, role: str, **also: Any) -> None:
        there = self.losses(arm, level, role)
        same = (there.seed == seed) & np.isclose(there.factor.astype(float), factor, rtol=1e-3)
        if (same & np.isclose(there.coeff.astype(float), coeff)).any():
            return
        rows = [{"corpus": self.name} | row | also for row in trial(self.texts, arm, level, seed, factor, coeff, role)]
        frame = pd.DataFrame(rows).reindex(columns=list(COLUMNS))
        frame.to_csv(self.file, mode="a", header=not self.file.is_file(), index=False, float_format="%.6g")


def search(table: Table, arm: str, level: int) -> tuple[float, float, float, bool]:
    """(coefficient, learning rate's factor, gap, at the edge?) that validation chooses."""
    coeff = 0.0
    if None in ARMS[arm][1].values():
        for value in ORTHO:
            table.add(arm, level, 0, 1.0, value, "coefficient")
        tried = table.losses(arm, level, "coefficient")
        coeff = float(tried.coeff[tried.validation_fvu.idxmin()])
    axis = Axis("lr_factor", *RANGE, log=True)
    for factor in FACTORS:
        table.add(arm, level, 0, factor, coeff, "search")
    for _ in range(REFINED):
        for (share,) in propose(measured(table, arm, level, axis), 1, 1):
            table.add(arm, level, 0, RANGE[0] * (RANGE[1] / RANGE[0]) ** share, coeff, "search")
    chosen = choose(measured(table, arm, level, axis), [axis])
    factor = float(table.losses(arm, level, "search").factor.iloc[chosen.index])
    return coeff, factor, chosen.gap, bool(chosen.edge)


def measured(table: Table, arm: str, level: int, axis: Axis) -> list[Measured]:
    there = table.losses(arm, level, "search")
    values = zip(there.factor, there.validation_fvu, strict=True)
    return [Measured((axis.share(float(factor)),), math.log(fvu)) for factor, fvu in values]


def main(file: Path, seeds: int, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names or CORPORA:
        table = Table(file, name)
        for arm, (_, _, levels) in ARMS.items():
            for level in levels:
                coeff, factor, gap, edge = search(table, arm, level)
                for seed in range(1, seeds + 1):
                    table.add(arm, level, seed, factor, coeff, "compare", gap=gap, edge=edge)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3, sys.argv[3:])
