"""How long codes and a page take: 100,000 texts and 6,144 latents (or other numbers) without a trained SAE.

    python experiments/latents/speed.py [--texts 100000] [--latents 6144] [--corpus FILE.parquet]

Prints processor seconds of this process, all threads together, and the peak of its memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from saebench.config import DataConfig, DatasetConfig, TrainConfig, TrialConfig
from saebench.latents.analysis import Latents
from saebench.latents.codes import write_codes
from saebench.latents.page import page
from saebench.latents.trial import ROWS_PER_PIECE, encode_rows
from saebench.saes import make_sae
from saebench.saes.topk import TopKConfig

D_IN, K = 384, 32


@contextmanager
def told(what: str) -> Iterator[None]:
    begin, wall = time.process_time(), time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{what:34} {time.process_time() - begin:7.1f} s CPU  {time.perf_counter() - wall:7.1f} s  {memory:5.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--latents", type=int, default=6_144)
    parser.add_argument("--corpus", default="sweeps/data/wordnet_glosses.parquet")
    given = parser.parse_args()
    table = pq.read_table(given.corpus).slice(0, given.texts)
    texts, labels = table.column("text").to_pylist(), table.column("label").to_pylist()
    while len(texts) < given.texts:
        texts, labels = [*texts, *(f"{t} {len(texts)}" for t in texts)], labels * 2
    texts, labels = texts[: given.texts], labels[: given.texts]
    rows = topics(given.texts)
    config = TopKConfig(k=K, dict_size=given.latents)
    sae = make_sae(config, D_IN, torch.from_numpy(rows[:4096]), 0).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        with told("encode and write the codes"):
            codes = write_codes(
                Path(folder, "codes"), {}, len(rows), given.latents, lambda a, b: encode_rows(sae, rows[a:b]),
                ROWS_PER_PIECE,
            )  # fmt: skip
        size = sum(file.stat().st_size for file in Path(folder, "codes").iterdir()) / 1e6
        print(f"codes: {len(codes.values):,} pairs, {size:.1f} MB")
        one = latents_of(config, sae, codes, texts, labels)
        with told("everything of a page"):
            for name in ("facts", "terms", "keywords", "labels", "near", "together", "families", "map"):
                with told(f"  {name}"):
                    getattr(one, name)
            with told("  the page itself"):
                html = page(one)
        print(f"page: {len(html) / 1e6:.1f} MB, {len(one.live):,} live latents, {one.summary()['families']} families")


def topics(count: int) -> np.ndarray:
    """Sums of three of a thousand directions: rows on which latents fire unevenly, as on text."""
    draw = np.random.default_rng(0)
    directions = draw.standard_normal((1000, D_IN)).astype(np.float32)
    which = np.minimum(draw.zipf(1.3, (count, 3)) - 1, 999)
    rows = directions[which].sum(1) + draw.standard_normal((count, D_IN)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class _Part(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.texts)


def latents_of(config: TopKConfig, sae: Any, codes: Any, texts: list[str], labels: list[str]) -> Latents:
    data = DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=len(texts))
    trial = TrialConfig(
        sweep="speed", number=0, stratum="topk", point="p", seed=0, data=data, sae=config,
        train=TrainConfig(samples=1),
    )  # fmt: skip
    part: Any = _Part(name="test", texts=texts, labels=labels, index=np.arange(len(texts)))
    part.entry = SimpleNamespace(cache_key="none")

    trained: Any = SimpleNamespace(name="speed/0", config=trial, decoder=sae.W_dec.numpy(), paths=None)
    return Latents(trained, part, codes)


if __name__ == "__main__":
    main()
