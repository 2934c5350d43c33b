"""Batches out of a cache of random rows: from the memory map on the CPU; on a GPU from its own memory, and from pinned
memory that is filled ahead, as for a corpus that does not fit."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import on_device
import torch
from timing import synchronize

from saebench.config import DataConfig
from saebench.stores import cache, keys, open_store
from saebench.stores.manifest import ROWS_PER_SHARD, Manifest, Shard, digest_of, write_file

BATCH = 2048
ROUNDS = 3


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
            files[kind] = write_file(folder, f"{number:05d}-{kind}", ".npy", partial(np.save, arr=array))
        shards.append(Shard(count=count, encoded=count, encoded_digest=digest_of(hashes), **files))
    identity = keys.identity_of(data, cache_dir)
    Manifest(
        identity=identity, named={}, label_column=None, cap=data.num_examples, counts={}, d_in=384, shards=tuple(shards)
    ).write(folder)


def reading(data: DataConfig, device: str, batches: int) -> None:
    """A row per way of keeping the rows; `batches` in each of the rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_entry(data, Path(folder))
        cache.find(data, Path(folder))  # the digest of the data file is remembered from here on
        start = time.perf_counter()
        cache.find(data, Path(folder))
        found = 1e3 * (time.perf_counter() - start)
        head = f"{data.num_examples:,} x 384 float32, {device}, batches of {BATCH:,} on one thread"
        print(f"\n{head}, load {os.getloadavg()[0]:.1f}; found in {found:.1f} ms\n")
        print("| rows | open, ms | first batch, ms | million rows/s, by round | waits a batch | first batch, SHA-256 |")
        print("|---|---|---|---|---|---|")
        for name, way in ways(device).items():
            with way():
                print(f"| {name} | {measured(data, Path(folder), device, batches)} |", flush=True)


def ways(device: str) -> dict[str, Callable[[], contextlib.AbstractContextManager[object]]]:
    """Name -> how to have a store do it."""
    if device != "cuda":
        return {"memory map": contextlib.nullcontext}
    fraction = "saebench.stores.rows.RESIDENT_FRACTION"
    return {
        "on the device": lambda: patch(fraction, 1.0),
        "pinned, filled ahead": lambda: patch(fraction, 0.0),
    }


def measured(data: DataConfig, cache_dir: Path, device: str, batches: int) -> str:
    times = [time.perf_counter()]
    store = open_store(data, batch_size=BATCH, seed=0, device=device, cache_dir=cache_dir)
    synchronize(torch.device(device))
    times.append(time.perf_counter())
    first = store.next_batch().cpu()
    times.append(time.perf_counter())
    opened, waited = (1e3 * (b - a) for a, b in pairwise(times))
    rates = ", ".join(f"{rate / 1e6:.2f}" for rate in rounds(store.next_batch, torch.device(device), batches))
    waits = f"{on_device.waits(store.next_batch).total() / on_device.STEPS:.2f}" if device == "cuda" else ""
    seal = hashlib.sha256(first.numpy().tobytes()).hexdigest()[:8]
    return f"{opened:.1f} | {waited:.1f} | {rates} | {waits} | {seal}"


def rounds(next_batch: Callable[[], torch.Tensor], device: torch.device, batches: int) -> Iterator[float]:
    """Rows per second."""
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(batches):
            next_batch()
        synchronize(device)
        yield batches * BATCH / (time.perf_counter() - start)
