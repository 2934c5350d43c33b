"""Train arms on embeddings, measure error, stability, classes and neighbours on a test part; a row of a table each.

    python experiments/pursuit/study.py --data FOLDER --corpora wnp-minilm --arms omp topk --k 32 --out results.csv
    python experiments/pursuit/study.py ... --search                      # five rates, seed 0; then --seeds 1 2 3 4
    python experiments/pursuit/study.py ... --floors
    python experiments/pursuit/study.py ... --peers --search              # three rates, then without --search

FOLDER has NAME-ENCODER.npy and NAME.parquet (columns text, label). Of the distinct texts a tenth is for the test and a
twentieth for validation, by hash. `--search` trains seed 0 at five multiples of the type's default rate; without it,
the multiple that was best on validation at this setting, or else at the first setting searched, is taken. Only rows of
a chosen rate have test figures. Rows that the table has are not measured again; `--decoders` keeps the dictionaries.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import arms
from arms import ARMS, PEERS, Encode

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.trial import probing
from saebench.trial.floors import FLOORS
from saebench.trial.metrics import Extras, Sums
from saebench.trial.stability import CodeStability
from saebench.trial.trainer import Training, train

FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)
PEER_FACTORS = (1.0, 0.33, 3.0)
FIELDS = ("corpus", "arm", "k", "dict_size", "samples", "batch", "factor", "seed", "lr", "validation_fvu", "fvu", "l0",
          "dead", "neighbours", "stability", "stability_largest", "auc_1", "auc_5", "training_s",
          "encoding_ms")  # fmt: skip


@dataclass
class Rows:
    """A corpus as a store."""

    train: Tensor
    labels: list[Any]
    validation_rows: Tensor
    test_rows: Tensor
    test_names: list[Any]
    batch: int
    seed: int

    def __post_init__(self) -> None:
        self.d_in, self.num_train = self.train.shape[1], len(self.train)
        self._served = torch.arange(self.num_train)
        self._batches = self._all()

    def _all(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = self._served[torch.randperm(len(self._served), generator=generator)]
            yield from (self.train[part] for part in order.split(self.batch) if len(part) == self.batch)

    def next_batch(self) -> Tensor:
        return next(self._batches)

    def sample(self, n: int) -> Tensor:
        return self.train[:n]

    def set_aside(self, n: int, places: Tensor) -> None:
        del n  # the sample is the first rows
        rest = torch.ones(self.num_train, dtype=torch.bool).index_fill(0, places, False)
        self._served = rest.nonzero().squeeze(1)

    def train_labels(self, n: int) -> list[Any]:
        return self.labels[:n]

    def validation(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(self.validation_rows.split(batch_size))

    def test(self, batch_size: int = 8192) -> Iterator[Tensor]:
        return iter(self.test_rows.split(batch_size))

    def validation_labels(self) -> None:
        return None

    def test_labels(self) -> list[Any]:
        return self.test_names


def corpus(folder: Path, name: str, batch: int, seed: int) -> Rows:
    rows = torch.from_numpy(np.load(folder / f"{name}.npy"))
    table = pq.read_table(folder / f"{name.split('-')[0]}.parquet")
    texts, labels = table["text"].to_pylist(), table["label"].to_pylist()
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    share = {text: _share(text) for text in first}
    test = [first[t] for t in first if share[t] < 0.1]
    validation = [first[t] for t in first if 0.1 <= share[t] < 0.15]
    learn = [first[t] for t in first if share[t] >= 0.15]
    names, test_names = ([labels[i] for i in part] for part in (learn, test))
    return Rows(rows[learn], names, rows[validation], rows[test], test_names, batch, seed)


def _share(text: str) -> float:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def fvu(encode: Encode, rows: Tensor) -> float:
    sums = Sums()
    for x in rows.split(1024):
        codes, x_hat = encode(x)
        sums.update(x, x_hat, codes)
    return sums.result().values["eval/fvu"]


def measured(encode: Encode, store: Rows) -> dict[str, Any]:
    """Everything on the test part, for whatever gives codes and reconstructions."""
    sums, extras = Sums(), Extras(["knn_overlap_at_10"])
    stable = CodeStability(lambda x: encode(x)[0].abs())
    begin = time.process_time()
    encode(store.test_rows[:1000])
    milliseconds = 1e3 * (time.process_time() - begin)
    for x in store.test_rows.split(1024):
        codes, x_hat = encode(x)
        sums.update(x, x_hat, codes)
        extras.update(x, x_hat)
        stable.update(x, codes.abs())
    found = sums.result()
    extras.measure("knn_overlap_at_10", found)
    values = found.values | stable.values()
    here, there = store.train[: probing.TRAIN_ROWS], store.test_rows[: probing.TEST_ROWS]
    features = [lambda rows=rows: (encode(x)[0] for x in rows.split(1024)) for rows in (here, there)]
    names = store.labels[: len(here)], store.test_names[: len(there)]
    values |= probing.probing({"": features[0]}, names[0], {"": features[1]}, names[1])
    return {
        "fvu": f"{values['eval/fvu']:.4f}",
        "l0": f"{values['eval/l0']:.2f}",
        "dead": int(values["eval/dead_features"]),
        "neighbours": f"{values['eval/knn_overlap_at_10']:.3f}",
        "stability": f"{values['eval/code_stability']:.3f}",
        "stability_largest": f"{values['eval/code_stability_largest']:.3f}",
        "auc_1": f"{values.get('eval/probing_auc_k1', float('nan')):.3f}",
        "auc_5": f"{values.get('eval/probing_auc_k5', float('nan')):.3f}",
        "encoding_ms": f"{milliseconds:.0f}",
    }


def trained(name: str, store: Rows, args: argparse.Namespace, factor: float) -> tuple[Training, float]:
    arm = ARMS[name]
    config = SAE_CONFIGS[arm.type](dict_size=args.dict_size, **arm.fields, **{arm.level: args.k})
    fields = {"samples": args.samples, "batch_size": args.batch, "decay": 0.5, "lr_factor": factor}
    training = Training.start(config, TrainConfig(**fields), store.seed, store)
    begin = time.process_time()
    for _ in train(training, store):
        pass
    seconds = time.process_time() - begin
    training.calibrate()
    training.sae.requires_grad_(False)
    return training, seconds


class Table:
    """Rows of a CSV file, written as they come."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = list(csv.DictReader(path.open())) if path.exists() else []

    def add(self, row: dict[str, Any]) -> None:
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(row.get(name, "")) for name in FIELDS})
        print(*row.values(), flush=True)

    def having(self, **about: Any) -> list[dict[str, str]]:
        return [row for row in self.rows if all(row[name] == str(value) for name, value in about.items())]

    def factor(self, arm: str, setting: dict[str, Any]) -> float:
        """The best multiple on validation at this setting, else where this arm was searched first; 1 if nowhere."""
        searched = self.having(arm=arm, seed=0)
        here = [row for row in searched if all(row[n] == str(v) for n, v in setting.items())]
        first = [row for row in searched if all(row[n] == searched[0][n] for n in setting)]
        for rows in (here, first):
            if len({row["factor"] for row in rows}) >= 3:
                return float(min(rows, key=lambda row: float(row["validation_fvu"]))["factor"])
        return 1.0


def setting_of(corpus_name: str, args: argparse.Namespace) -> dict[str, Any]:
    return {"corpus": corpus_name} | {name: getattr(args, name) for name in ("k", "dict_size", "samples", "batch")}


def study(name: str, corpus_name: str, seed: int, factor: float, table: Table, args: argparse.Namespace) -> None:
    setting = setting_of(corpus_name, args)
    about = {"arm": name, "factor": factor, "seed": seed}
    if any(row["fvu"] for row in table.having(**setting, **about)):
        return
    store = corpus(args.data, corpus_name, args.batch, seed)
    training, seconds = trained(name, store, args, factor)

    @torch.no_grad()
    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        x_hat, codes = training.sae.reconstruct(x)
        return codes, x_hat

    row = setting | about | {"lr": f"{training.lr:.4g}", "training_s": f"{seconds:.1f}"}
    row["validation_fvu"] = f"{fvu(encode, store.validation_rows):.4f}"
    table.add(row | measured(encode, store))
    if args.decoders and factor == table.factor(name, setting):
        args.decoders.mkdir(exist_ok=True)
        file = f"{corpus_name}.{name.replace(' ', '_').replace('/', 'over')}.{args.k}.{args.dict_size}.{seed}.npy"
        np.save(args.decoders / file, training.sae.W_dec.half().numpy())


def floors(corpus_name: str, table: Table, args: argparse.Namespace) -> None:
    store = corpus(args.data, corpus_name, args.batch, 0)
    setting = setting_of(corpus_name, args) | {"samples": 0, "batch": 0}
    for name, make in FLOORS.items():
        if not table.having(**setting, arm=f"floor: {name}"):
            try:
                encode = make(store.train[:16_384], args.k, args.dict_size)
            except ValueError as error:
                print(name, error)
                continue
            values = measured(encode, store)
            row = setting | {"arm": f"floor: {name}", "factor": "", "seed": 0}
            table.add(row | {"validation_fvu": f"{fvu(encode, store.validation_rows):.4f}"} | values)


def peers(corpus_name: str, table: Table, args: argparse.Namespace) -> None:
    setting = setting_of(corpus_name, args)
    for name, (_, lr) in PEERS.items():
        for factor in PEER_FACTORS if args.search else [table.factor(name, setting)]:
            about = {"arm": name, "factor": factor, "seed": 0}
            if table.having(**setting, **about) or (args.arms and name not in args.arms):
                continue
            torch.manual_seed(0)
            store = corpus(args.data, corpus_name, args.batch, 0)
            begin = time.process_time()
            size = args.k, args.dict_size, args.samples // args.batch
            encode = arms.train_peer(name, store.train, store.next_batch, *size, factor * lr)
            row = setting | about | {"lr": f"{factor * lr:.4g}", "training_s": f"{time.process_time() - begin:.1f}"}
            row["validation_fvu"] = f"{fvu(encode, store.validation_rows):.4f}"
            table.add(row | measured(encode, store))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--corpora", nargs="+", required=True, help="NAME-ENCODER")
    parser.add_argument("--arms", nargs="*", default=[], choices=[*ARMS, *PEERS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--search", action="store_true", help="five rates instead of the chosen one")
    parser.add_argument("--floors", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--dict-size", type=int, default=1536)
    parser.add_argument("--samples", type=int, default=51_200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--decoders", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(args.out)
    for name in args.corpora:
        if args.floors:
            floors(name, table, args)
        if args.peers:
            peers(name, table, args)
            continue
        for arm in args.arms:
            for seed in args.seeds:
                chosen = [table.factor(arm, setting_of(name, args))]
                for factor in FACTORS if args.search else chosen:
                    study(arm, name, seed, factor, table, args)


if __name__ == "__main__":
    main()
