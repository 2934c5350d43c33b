"""Train arms on embeddings that are there, and measure error, stability of codes and classes; a row of a table each.

    python experiments/pursuit/study.py --embeddings wnp=wnp.npy --labels wnp=wnp.parquet --arms omp topk --out out.csv

An array (N, d_in) per corpus, its labels (column `label`) beside it where there are some. A tenth of the distinct rows
is held out, the same for all arms. Rows that results.csv has already are not measured again.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training, train

ONE_PASS: dict[str, Any] = {"start": "data", "encoder_scale": 0.1}
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "omp": ("omp", {}, {}),
    "omp, refit 4": ("omp", {"refit_every": 4}, {}),
    "omp, refit 2": ("omp", {"refit_every": 2}, {}),
    "omp, refit 1": ("omp", {"refit_every": 1}, {}),
    "omp, no group refits": ("omp", {"refit_every": 1024}, {}),
    "omp, 4 at a time": ("omp", {"at_a_time": 4}, {}),
    "omp, 8 at a time": ("omp", {"at_a_time": 8}, {}),
    "omp, 16 at a time": ("omp", {"at_a_time": 16}, {}),
    "omp, target_l0": ("omp", {"target_l0": None}, {}),
    "topk": ("topk", ONE_PASS, {"encoder_decay": 0.5}),
    "topk, refine 2": ("topk", ONE_PASS | {"refine": 2}, {"encoder_decay": 0.5}),
    "topk, refine 2, trained": ("topk", ONE_PASS | {"refine": 2, "refine_training": True}, {"encoder_decay": 0.5}),
    "topk, refine 8, trained": ("topk", ONE_PASS | {"refine": 8, "refine_training": True}, {"encoder_decay": 0.5}),
    "batchtopk": ("batchtopk", ONE_PASS, {"encoder_decay": 0.5}),
    "batchtopk, refine 2": ("batchtopk", ONE_PASS | {"refine": 2}, {"encoder_decay": 0.5}),
    "batchtopk, refine 2, trained": (
        "batchtopk", ONE_PASS | {"refine": 2, "refine_training": True}, {"encoder_decay": 0.5}
    ),
    "matryoshka": ("matryoshka", ONE_PASS, {"encoder_decay": 0.5}),
    "jumprelu": ("jumprelu", ONE_PASS, {"encoder_decay": 0.5, "lr": 0.0042}),
    "jumprelu, refine 2": ("jumprelu", ONE_PASS | {"refine": 2}, {"encoder_decay": 0.5, "lr": 0.0042}),
}  # fmt: skip
"""Name -> type, fields of the SAE, fields of the training."""
FIELDS = ("corpus", "arm", "k", "dict_size", "samples", "batch", "lr", "seed", "fvu", "l0", "dead", "stability",
          "stability_largest", "auc_1", "auc_5", "training_s", "encoding_ms")  # fmt: skip


@dataclass
class Rows:
    """A corpus as a store."""

    rows: Tensor
    held: Tensor
    labels: list[Any] | None
    held_labels: list[Any] | None
    batch: int
    seed: int

    def __post_init__(self) -> None:
        self.d_in, self.num_train = self.rows.shape[1], len(self.rows)
        self._served = torch.arange(self.num_train)
        self._batches = self._all()

    def _all(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = self._served[torch.randperm(len(self._served), generator=generator)]
            yield from (self.rows[part] for part in order.split(self.batch) if len(part) == self.batch)

    def next_batch(self) -> Tensor:
        return next(self._batches)

    def sample(self, n: int) -> Tensor:
        return self.rows[:n]

    def set_aside(self, n: int, places: Tensor) -> None:
        del n  # the sample is the first rows
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def train_labels(self, n: int) -> list[Any] | None:
        return self.labels[:n] if self.labels else None

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        yield from self.held.split(batch_size)

    test = validation

    def validation_labels(self) -> list[Any] | None:
        return self.held_labels

    test_labels = validation_labels


def corpus(path: str, labels: str | None, batch: int, seed: int) -> Rows:
    rows, first = np.unique(np.load(path), axis=0, return_index=True)
    order = np.random.default_rng(99).permutation(len(rows))
    names = None
    if labels:
        import pyarrow.parquet

        column = pyarrow.parquet.read_table(labels)["label"].to_pylist()
        names = [column[first[i]] for i in order]
    x, count = torch.from_numpy(rows[order]), len(rows) // 10
    return Rows(x[count:], x[:count], names and names[count:], names and names[:count], batch, seed)


def measure(name: str, store: Rows, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    kind, sae_fields, train_fields = ARMS[name]
    level = {"target_l0": args.k} if kind == "jumprelu" or "target_l0" in sae_fields else {"k": args.k}
    rule = None if kind == "omp" else 0.0005 * (args.batch * 1536 / args.dict_size) ** 0.5
    lr = args.lr or train_fields.get("lr") or rule
    fields = {"samples": args.samples, "batch_size": args.batch, "decay": 0.5, **train_fields, "lr": lr}
    config = SAE_CONFIGS[kind](dict_size=args.dict_size, **{**sae_fields, **level})
    training = Training.start(config, TrainConfig(**fields), seed, store)
    begin = time.process_time()
    for _ in train(training, store):
        pass
    seconds = time.process_time() - begin
    training.calibrate()
    values = evaluate(training.sae, store, ("probing",) if store.labels else ()).values
    begin = time.process_time()
    with torch.no_grad():
        training.sae.encode(store.held[:1000])
    return {
        "lr": f"{training.lr:.4g}",
        "fvu": f"{values['eval/fvu']:.4f}",
        "l0": f"{values['eval/l0']:.2f}",
        "dead": int(values["eval/dead_features"]),
        "stability": f"{values['eval/code_stability']:.3f}",
        "stability_largest": f"{values['eval/code_stability_largest']:.3f}",
        "auc_1": f"{values.get('eval/probing_auc_k1', float('nan')):.3f}",
        "auc_5": f"{values.get('eval/probing_auc_k5', float('nan')):.3f}",
        "training_s": f"{seconds:.1f}",
        "encoding_ms": f"{1e3 * (time.process_time() - begin):.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", nargs="+", required=True, help="NAME=ARRAY.npy")
    parser.add_argument("--labels", nargs="*", default=[], help="NAME=TABLE.parquet")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dict-size", type=int, default=1536)
    parser.add_argument("--samples", type=int, default=51_200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    labels = dict(one.split("=") for one in args.labels)
    done = set()
    if args.out.exists():
        done = {(*(row[name] for name in FIELDS[:6]), row["seed"]) for row in csv.DictReader(args.out.open())}
    for name, path in (one.split("=") for one in args.embeddings):
        for arm in args.arms:
            for seed in args.seeds:
                about = {"corpus": name, "arm": arm, "k": args.k, "dict_size": args.dict_size}
                about |= {"samples": args.samples, "batch": args.batch}
                if args.lr is None and (*map(str, about.values()), str(seed)) in done:
                    continue
                row = (
                    about | {"seed": seed} | measure(arm, corpus(path, labels.get(name), args.batch, seed), args, seed)
                )
                new = not args.out.exists()
                with args.out.open("a", newline="") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if new:
                        writer.writeheader()
                    writer.writerow(row)
                print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
