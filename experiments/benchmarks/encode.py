"""Encoding and reading: the cache's way against the plain loop, and batches out of a cache of a million rows.

    python experiments/benchmarks/encode.py [--texts 2000] [--rounds 2] [--rows 1000000] [--device cpu]

Encoding. The plain loop is what a training script does: batches of 64 in the order of the stream, each through
`model.encode`. Ours is what an encoding process of the cache does: windows of 1,024 texts sorted by tokens, batches of
about equal numbers of tokens, in float32 and in bfloat16 (autocast). All ways run in this process, one after the other,
`--rounds` times; the best round counts. The last rows encode the same texts by `cache.build`, one process per core:
texts per second from the first text encoded to the last, then everything, starting processes included.

Reading. An entry of `--rows` × 384 random rows is written below a temporary folder; then: finding it, opening a store
on it, and batches of 2,048 on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet
import torch
from torch import Tensor

from saebench.config import DataConfig, DatasetConfig
from saebench.stores import cache, keys, open_store
from saebench.stores.encoder import SentenceEncoder
from saebench.stores.entry import ROWS_PER_PART, ROWS_PER_SHARD, Manifest, Shard, digest_of
from saebench.stores.read import settle

REPOSITORY = Path(__file__).parents[2]
GLOSSES = REPOSITORY / "sweeps" / "data" / "wordnet_glosses.parquet"
PLAIN_BATCH = 64


def config(count: int, precision: str = "float32") -> DataConfig:
    return DataConfig(
        model="sentence-transformers/all-MiniLM-L6-v2",
        dataset=DatasetConfig(path="parquet", data_files=str(GLOSSES)),
        num_examples=count,
        precision=precision,
    )


def plain(encoder: SentenceEncoder, texts: Sequence[str]) -> Tensor:
    """Batches in the order of the stream, each through `model.encode`."""
    rows = [
        encoder.model.encode(texts[start : start + PLAIN_BATCH], batch_size=PLAIN_BATCH, convert_to_tensor=True)
        for start in range(0, len(texts), PLAIN_BATCH)
    ]
    return torch.cat(rows).cpu()


def ours(encoder: SentenceEncoder, texts: Sequence[str]) -> Tensor:
    """Windows as the cache cuts them."""
    windows = range(0, len(texts), ROWS_PER_PART)
    return torch.cat([encoder.embed(texts[start : start + ROWS_PER_PART]) for start in windows])


def encoding(count: int, rounds: int, device: str) -> None:
    texts = pyarrow.parquet.read_table(GLOSSES)["text"].to_pylist()[:count]
    exact, lower = (SentenceEncoder(config(count, p), device) for p in ("float32", "bfloat16"))
    ways: dict[str, Callable[[], Tensor]] = {
        f"plain loop, batches of {PLAIN_BATCH}": lambda: plain(exact, texts),
        "sorted windows, float32": lambda: ours(exact, texts),
        "sorted windows, bfloat16": lambda: ours(lower, texts),
    }
    seconds = dict.fromkeys(ways, float("inf"))
    rows: dict[str, Tensor] = {}
    for encoder in (exact, lower):
        encoder.embed(texts[:256])  # allocators, thread pools, kernels
    for _ in range(rounds):
        for name, encode in ways.items():
            start = time.perf_counter()
            rows[name] = encode()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    base = next(iter(ways))
    print(f"\n{count:,} texts, {device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| way | texts/s | against plain | cosine to plain, mean / min |\n|---|---|---|---|")
    for name in ways:
        cosine = torch.nn.functional.cosine_similarity(rows[name], rows[base])
        ratio = seconds[base] / seconds[name]
        print(f"| {name} | {count / seconds[name]:,.0f} | {ratio:.1f}x | {cosine.mean():.6f} / {cosine.min():.6f} |")
    for precision in ("float32", "bfloat16"):
        rate, whole = built(config(count, precision), device)
        print(
            f"| cache.build, {precision} | {rate:,.0f} | {rate * seconds[base] / count:.1f}x | {whole:.0f} s in all |"
        )


def built(data: DataConfig, device: str) -> tuple[float, float]:
    """(texts per second while encoding, seconds in all) of a build from nothing."""
    times: list[tuple[float, int]] = []

    def watch(now: cache.Progress) -> None:
        if now.stage == "encoding":
            times.append((time.perf_counter(), now.done))

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache.build(data, Path(folder), [device], watch)
        end = time.perf_counter()
    (first, there), (last, total) = times[0], times[-1]
    return (total - there) / (last - first), end - start


# --- reading ---------------------------------------------------------------------------------------------------------


def make_entry(data: DataConfig, cache_dir: Path) -> None:
    """An entry of random rows, as a build would have left it (its files of texts are placeholders)."""
    folder = cache.entry_folder(data, cache_dir)
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    shards = []
    for number, start in enumerate(range(0, data.num_examples, ROWS_PER_SHARD)):
        count = min(ROWS_PER_SHARD, data.num_examples - start)
        hashes = generator.integers(0, 2**64, count, np.uint64)
        arrays = {"texts": np.zeros(1), "hashes": hashes, "rows": generator.random((count, 384), np.float32)}
        files = {}
        for kind, array in arrays.items():
            aside = folder / f"{number:05d}-{kind}"
            with aside.open("wb") as file:
                np.save(file, array)
            files[kind] = settle(aside, ".npy")
        shards.append(Shard(count=count, encoded=count, encoded_digest=digest_of(hashes), **files))
    key = keys.describe(data, cache_dir)
    Manifest(
        key=key, named={}, label_column=None, cap=data.num_examples, counts={}, d_in=384, shards=tuple(shards)
    ).write(folder)


def reading(count: int, batches: int = 1500) -> None:
    torch.set_num_threads(1)
    data = config(count)
    with tempfile.TemporaryDirectory() as folder:
        make_entry(data, Path(folder))
        cache.find(data, Path(folder))  # the digest of the data file is remembered from here on
        start = time.perf_counter()
        cache.find(data, Path(folder))
        found = time.perf_counter()
        store = open_store(data, batch_size=2048, seed=0, device="cpu", cache_dir=Path(folder))
        opened = time.perf_counter()
        sums = hashlib.sha256(store.next_batch().numpy().tobytes()).hexdigest()[:8]
        first = time.perf_counter()
        rates = []
        for _ in range(3):
            start_round = time.perf_counter()
            for _ in range(batches // 3):
                store.next_batch()
            rates.append(batches // 3 * 2048 / (time.perf_counter() - start_round))
    milliseconds = {"find": found - start, "open": opened - found, "first batch": first - opened}
    print(f"\n{count:,} x 384 float32, one thread, load {os.getloadavg()[0]:.1f} (first batch {sums})\n")
    print(json.dumps({name: f"{1000 * value:.1f} ms" for name, value in milliseconds.items()}))
    print("batches of 2,048: " + ", ".join(f"{rate / 1e6:.2f}" for rate in rates) + " million rows/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    if arguments.texts:
        encoding(arguments.texts, arguments.rounds, arguments.device)
    if arguments.rows:
        reading(arguments.rows)
