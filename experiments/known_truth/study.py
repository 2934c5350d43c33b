"""Train every type on the known truth, one after the other, and append what came of it; the same command resumes.

    python study.py DATA trials.csv [SEEDS]

A row has the arm, the final metrics of a trial, and the truth (measure.py). Points are trained with `Training` at its
default learning rate; `stability` is the mean matched cosine with the seeds before it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import METRICS, matched, sae_scores
from torch import Tensor

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

LEVELS, WIDTHS = (4, 8, 16), (256, 128)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in SAE_CONFIGS},
    "batchtopk ortho": ("batchtopk", {"ortho_coeff": 0.1}),
    "batchtopk frozen_decoder": ("batchtopk", {"control": "frozen_decoder"}),
    "batchtopk frozen_encoder": ("batchtopk", {"control": "frozen_encoder"}),
}
BUDGET = TrainConfig(samples=51_200, batch_size=256)


class Rows:
    """A store over an array: 80% training rows, the rest validation and test; a permutation per epoch and seed."""

    def __init__(self, x: Tensor, labels: list[str], seed: int) -> None:
        self.num_train, self.d_in = int(0.8 * len(x)), x.shape[1]
        self.x, self.labels, self._seed = x, labels, seed
        self._served, self._position = torch.arange(self.num_train), 0

    def set_aside(self, _: int, places: Tensor) -> None:
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def next_batch(self) -> Tensor:
        epoch, place = divmod(self._position, len(self._served) // BUDGET.batch_size)
        generator = torch.Generator().manual_seed(1000 * self._seed + epoch)
        order = self._served[torch.randperm(len(self._served), generator=generator)]
        self._position += 1
        return self.x[order[place * BUDGET.batch_size : (place + 1) * BUDGET.batch_size]]

    def sample(self, n: int) -> Tensor:
        return self.x[: self.num_train][:n]

    def train_labels(self, n: int) -> list[Any] | None:
        return self.labels[: self.num_train][:n]

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self.x[self.num_train :].split(batch_size)

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return self.validation(batch_size)

    def validation_labels(self) -> list[Any] | None:
        return self.labels[self.num_train :]

    def test_labels(self) -> list[Any] | None:
        return self.validation_labels()


def points(seeds: int) -> Iterator[tuple[str, int, int, int]]:
    """(arm, level, width, seed): every cell has one seed before any has two."""
    for seed in range(seeds):
        for width in WIDTHS:
            for level in LEVELS:
                arms = (arm for arm in ARMS if arm != "hierarchical_topk" or level == LEVELS[-1])
                yield from ((arm, level, width, seed) for arm in arms)


def trained(arm: str, level: int, width: int, rows: Rows, seed: int) -> Any:
    """The SAE of one point."""
    kind, fields = ARMS[arm]
    config = SAE_CONFIGS[kind]
    sparsity = "k" if "k" in config.model_fields else "target_l0"
    sae = config.model_validate({"dict_size": width, sparsity: level, **fields})
    training = Training.start(sae, BUDGET, seed, rows)
    for _ in train(training, rows):
        pass
    training.calibrate()
    return training.sae


def run(data: Path, out: Path, seeds: int) -> None:
    """All points that `out` lacks."""
    world, x = dict(np.load(data / "truth.npz")), torch.from_numpy(np.load(data / "embeddings.npy"))
    labels = [str(label) for label in np.load(data / "labels.npy")]
    done = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=["arm", "trained", "width", "seed"])
    there = set(done[["arm", "trained", "width", "seed"]].itertuples(index=False, name=None))
    decoders = out.with_suffix("")
    decoders.mkdir(parents=True, exist_ok=True)
    for arm, level, width, seed in points(seeds):
        if (arm, level, width, seed) in there:
            continue
        rows = Rows(x, labels, seed)
        sae = trained(arm, level, width, rows, seed)
        values = evaluate(sae, rows, ("knn_overlap_at_10", "similarity_rank_correlation", "probing"), "test").values
        found = []
        for k in [k for k in LEVELS if k < level and f"test/fvu_at/{k}" in values] + [level]:
            own = {key: values.get(key, np.nan) for key in METRICS if key != "stability"}
            if k < level:
                own = dict.fromkeys(own, np.nan) | {"test/fvu": values[f"test/fvu_at/{k}"]}
            scores, live = sae_scores(sae, world, k if k < level else None)
            file = f"{arm.replace(' ', '_')}-{k}-{width}"
            others = [np.load(decoders / f"{file}-{other}.npy") for other in range(seed)]
            np.save(decoders / f"{file}-{seed}.npy", live)
            stable = float(np.mean([matched(live, other) for other in others])) if others else np.nan
            place = {"arm": arm, "level": k, "trained": level, "width": width, "seed": seed}
            fires = {"l0": values.get(f"test/l0_at/{k}", values["test/l0"])}
            found.append(place | fires | own | {"stability": stable} | scores)
        pd.DataFrame(found).to_csv(out, mode="a", header=not out.is_file(), index=False, float_format="%.5g")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 3)
