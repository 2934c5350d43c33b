"""Train every type on the known truth, one after the other, and append what came of it; the same command resumes.

    python study.py DATA trials.csv [SEEDS [SAMPLES]]

A row has the arm, the final metrics of a trial, and the truth (measure.py). Points are trained with `Training` at its
default learning rate; `stability` is the mean matched cosine with the seeds before it. Floors (trial/floors.py) have a
row per level and width.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from measure import METRICS, TRUTHS, dictionary_scores, matched, sae_scores
from numpy.typing import NDArray
from torch import Tensor

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.latents.codes import Codes, chunk_of, offsets_of
from saebench.latents.floors import FLOORS as OF_LATENTS
from saebench.latents.judge import SAE as OF_THE_SAE
from saebench.latents.judge import SCORES, Texts, judge
from saebench.latents.ranks import classes_of
from saebench.saes import SAE
from saebench.trial.decoder import mean_absolute_cosine
from saebench.trial.evaluation import evaluate
from saebench.trial.floors import FLOORS, compute
from saebench.trial.trainer import Training, train

LEVELS, WIDTHS = (4, 8, 16), (256, 128)
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in SAE_CONFIGS},
    "batchtopk ortho": ("batchtopk", {"ortho_coeff": 0.1}),
    "batchtopk k_start": ("batchtopk", {"k_start": 32}),
    "batchtopk frozen_decoder": ("batchtopk", {"control": "frozen_decoder"}),
    "batchtopk frozen_encoder": ("batchtopk", {"control": "frozen_encoder"}),
    "batchtopk soft_decoder": ("batchtopk", {"control": "soft_decoder"}),
}
BATCH, SAMPLES = 256, 51_200
BUDGET = TrainConfig(samples=SAMPLES, batch_size=BATCH)


class Rows:
    """A store over an array: 80% training rows, the rest validation and test; a permutation per epoch and seed."""

    def __init__(self, x: Tensor, labels: list[str], seed: int) -> None:
        self.num_train, self.d_in = int(0.8 * len(x)), x.shape[1]
        self.test_index = np.arange(self.num_train, len(x))
        self.x, self._labels, self._seed = x, labels, seed
        self._served, self._position = torch.arange(self.num_train), 0

    def set_aside(self, _: int, places: Tensor) -> None:
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def next_batch(self) -> Tensor:
        epoch, place = divmod(self._position, len(self._served) // BUDGET.batch_size)
        generator = torch.Generator().manual_seed(1000 * (self._seed + 1) + epoch)  # not the SAE's: its first rows
        order = self._served[torch.randperm(len(self._served), generator=generator)]
        self._position += 1
        return self.x[order[place * BUDGET.batch_size : (place + 1) * BUDGET.batch_size]]

    def sample(self, n: int) -> Tensor:
        return self.x[: self.num_train][:n]

    def train_labels(self, n: int) -> list[Any] | None:
        return self._labels[: self.num_train][:n]

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self.x[self.num_train :].split(batch_size)

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return self.validation(batch_size)

    def validation_labels(self) -> list[Any] | None:
        return self._labels[self.num_train :]

    def test_labels(self) -> list[Any] | None:
        return self.validation_labels()

    def sample_index(self, n: int) -> NDArray[np.int64]:
        return np.arange(min(n, self.num_train))

    def read(self, index: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.x.numpy()[index]

    def labels(self, index: NDArray[np.int64]) -> list[Any]:
        return [self._labels[i] for i in index]


class Meanings:
    """Texts, labels and second embeddings of the rows: what scores of latents need."""

    def __init__(self, data: Path, rows: Rows) -> None:
        self._rows, self._texts, self._second = rows, np.load(data / "texts.npy"), np.load(data / "second.npy")
        self._parts = (rows.sample_index(4096), rows.test_index)

    def scores(self, codes: NDArray[np.float32]) -> dict[str, float]:
        """`test/SCORE_above_floor` of the codes of all rows (rows, latents)."""
        train, test = (self._part(codes, index) for index in self._parts)
        judged = judge(train, test, self._classes, SCORES).values
        return {f"test/{name}_above_floor": value - max(judged[floor][name] for floor in OF_LATENTS)
                for name, value in judged[OF_THE_SAE].items()}  # fmt: skip

    @cached_property
    def _classes(self) -> Any:
        return classes_of(*(self._rows.labels(index) for index in self._parts))

    def _part(self, codes: NDArray[np.float32], index: NDArray[np.int64]) -> Texts:
        values, latents, counts = chunk_of(codes[index])
        sparse = Codes(values, latents, offsets_of(counts), codes.shape[1])
        return Texts(self._rows.read(index), sparse, list(self._texts[index]), self._second[index])


def points(seeds: int) -> Iterator[tuple[str, int, int, int]]:
    """(arm, level, width, seed): every cell has one seed before any has two."""
    for seed in range(seeds):
        for width in WIDTHS:
            for level in LEVELS:
                arms = (arm for arm in ARMS if arm != "hierarchical_topk" or level == LEVELS[-1])
                yield from ((arm, level, width, seed) for arm in arms)


def trained(arm: str, level: int, width: int, rows: Rows, seed: int, samples: int = SAMPLES, **others: Any) -> Any:
    """The SAE of one point; `others` are further fields of its config."""
    kind, fields = ARMS[arm]
    config = SAE_CONFIGS[kind]
    sparsity = "k" if "k" in config.model_fields else "target_l0"
    sae = config.model_validate({"dict_size": width, sparsity: level, **fields, **others})
    training = Training.start(sae, TrainConfig(samples=samples, batch_size=BATCH), seed, rows)
    for _ in train(training, rows):
        pass
    training.calibrate()
    return training.sae


@torch.no_grad()
def measured(sae: SAE, level: int, rows: Rows, meanings: Meanings) -> dict[int, dict[str, float]]:
    """Final metrics by level: of a trial, and FVU alone at the lower levels of hierarchical_topk."""
    values = evaluate(sae, rows, ("knn_overlap_at_10", "similarity_rank_correlation", "probing"), "test").values
    values |= meanings.scores(sae.encode(rows.x).numpy())
    found = {k: {"l0": values[f"test/l0_at/{k}"], "test/fvu": values[f"test/fvu_at/{k}"]}
             for k in LEVELS if k < level and f"test/fvu_at/{k}" in values}  # fmt: skip
    return found | {level: {"l0": values["test/l0"]} | {key: values.get(key, np.nan) for key in METRICS}}


def floors(level: int, width: int, rows: Rows, meanings: Meanings, world: Any) -> list[dict[str, Any]]:
    """A row per floor. The directions that its codes have used are solved for: x_hat is linear in the codes."""
    found = []
    for record in compute(rows, level, width):  # type: ignore[arg-type]
        name = record["floor"]
        encode = FLOORS[name](torch.from_numpy(rows.read(rows.sample_index(16_384))), level, width)
        codes, x_hat = (part.numpy().astype(np.float64) for part in encode(rows.x))
        ones = np.ones((len(codes), 1))
        directions = np.linalg.lstsq(np.hstack([codes, ones]), x_hat, rcond=None)[0][:-1].astype(np.float32)
        fresh = encode(torch.from_numpy(world["x"]))[0].numpy()
        scores, live = dictionary_scores(directions, fresh, world, signed=True)
        values = record["values"] | meanings.scores(codes.astype(np.float32))
        values["test/c_dec"] = mean_absolute_cosine(torch.from_numpy(live))
        place = {"arm": f"floor {name}", "level": level, "trained": level, "width": width, "seed": 0}
        own = {key: values.get(key, np.nan) for key in METRICS}
        found.append(place | {"l0": float((fresh != 0).sum(1).mean())} | own | scores)
    return found


def run(data: Path, out: Path, seeds: int = 3, samples: int = SAMPLES) -> None:
    """All points that `out` lacks."""
    world, x = dict(np.load(data / "truth.npz")), torch.from_numpy(np.load(data / "embeddings.npy"))
    labels = [str(label) for label in np.load(data / "labels.npy")]
    done = pd.read_csv(out) if out.is_file() else pd.DataFrame(columns=["arm", "trained", "width", "seed"])
    there = set(done[["arm", "trained", "width", "seed"]].itertuples(index=False, name=None))
    decoders = out.with_suffix("")
    decoders.mkdir(parents=True, exist_ok=True)
    meanings = Meanings(data, Rows(x, labels, 0))
    for level, width in product(LEVELS, WIDTHS):
        if ("floor random", level, width, 0) not in there:
            append(out, floors(level, width, Rows(x, labels, 0), meanings, world))
    for arm, level, width, seed in points(seeds):
        if (arm, level, width, seed) in there:
            continue
        rows = Rows(x, labels, seed)
        sae = trained(arm, level, width, rows, seed, samples)
        found = []
        for k, values in measured(sae, level, rows, meanings).items():
            scores, live = sae_scores(sae, world, k if k < level else None)
            file = f"{arm.replace(' ', '_')}-{k}-{width}"
            others = [np.load(decoders / f"{file}-{other}.npy") for other in range(seed)]
            np.save(decoders / f"{file}-{seed}.npy", live)
            stable = float(np.mean([matched(live, other) for other in others])) if others else np.nan
            place = {"arm": arm, "level": k, "trained": level, "width": width, "seed": seed}
            found.append(place | dict.fromkeys(METRICS, np.nan) | values | {"stability": stable} | scores)
        append(out, found)


def append(out: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to the table, whose columns are always the same."""
    columns = ["arm", "level", "trained", "width", "seed", "l0", *METRICS, *TRUTHS]
    pd.DataFrame(rows)[columns].to_csv(out, mode="a", header=not out.is_file(), index=False, float_format="%.5g")


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
