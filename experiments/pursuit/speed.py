"""Processor time of a training step and of encoding, one thread: omp, topk, refined topk, and other projects' pursuits.

    python experiments/pursuit/speed.py --embeddings wnp.npy --dict-sizes 1536 6144

Installs nothing; with --peers measures overcomplete's and SAELens' pursuits, where they can be imported. The least of
some repetitions each: other processes can only add to it. (A mean over omp's steps, which are not alike.)
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import peers
from contestants import start
from work import Work


def least(work: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of this process's processor time."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(1e3 * (time.process_time() - begin))
    return min(times)


OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "topk": ("topk", {}),
    "topk, refine 2": ("topk", {"refine": 2}),
    "omp": ("omp", {}),
    "omp, 16 at a time": ("omp", {"at_a_time": 16}),
}


def ours(
    rows: Tensor, dict_size: int, batch: int, k: int, repeats: int, arms: list[str]
) -> dict[str, tuple[float, float]]:
    found, work = {}, Work(batch, rows.shape[1], dict_size, k, rows)
    for name, (kind, fields) in OURS.items():
        if name not in arms:
            continue
        training, step = start(kind, work, sae=fields)
        for _ in range(3):
            step()
        stepping = least(step, 2 * repeats) if kind != "omp" else _mean(step, 8 * min(repeats, 2))
        training.calibrate()
        with torch.no_grad():
            encoding = least(lambda sae=training.sae: sae.encode(rows[:1000]), repeats)
        found[name] = stepping, encoding
    return found


def _mean(work: Callable[[], Any], repeats: int) -> float:
    """omp's steps are not alike: some compute the products of the rows."""
    begin = time.process_time()
    for _ in range(repeats):
        work()
    return 1e3 * (time.process_time() - begin) / repeats


def theirs(rows: Tensor, dict_size: int, batch: int, k: int, repeats: int) -> dict[str, tuple[float, float]]:
    found, work = {}, Work(batch, rows.shape[1], dict_size, k, rows)
    for name, make in peers.PURSUITS.items():
        try:
            step, encode = make(work)
        except ModuleNotFoundError as error:
            print(f"{name}: {error}")
            continue
        found[name] = least(step, repeats), least(lambda encode=encode: encode(rows[:1000]), repeats)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embeddings", required=True)
    parser.add_argument("--dict-sizes", nargs="+", type=int, default=[1536, 6144])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--arms", nargs="+", default=list(OURS), choices=OURS)
    parser.add_argument("--peers", action="store_true", help="other projects' too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    x = torch.from_numpy(np.load(args.embeddings)[: 4 * args.batch]).float()
    print("| dict_size | what | step, ms | / topk | encoding 1,000, ms | / topk | peak memory, MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for dict_size in args.dict_sizes:
        found = ours(x, dict_size, args.batch, args.k, args.repeats, args.arms)
        if args.peers:
            found |= theirs(x, dict_size, args.batch, args.k, max(1, args.repeats // 2))
        step, encoding = found.get("topk", (float("nan"),) * 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        for name, (a, b) in found.items():
            print(f"| {dict_size} | {name} | {a:.1f} | {a / step:.2f} | {b:.1f} | {b / encoding:.2f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
