"""Processor time and examples until a hold-out FVU is reached: ours with its defaults against other projects' trainers.

    RECIPE_DATA=... BATCHTOPK_CODE=... python experiments/benchmarks/time_to_fvu.py --kind topk --lrs 0.002 0.004 0.008

Every trainer gets the same rows in the same order; a peer is tried at every lr of its list (`--lr NAME=LR`, several
times; without it `--lrs`) and the best is shown, ours runs at `lr: null`. The goal is the final FVU of the best peer.
A run whose lr has not fallen yet is worse than one that ends there: `--budgets` trains ours to smaller budgets, too.
Measuring the hold-out is not counted. One thread, processor time; median over the seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS, TrainConfig, default_batch_size
from saebench.trial.evaluation import evaluate
from saebench.trial.trainer import Training

RECIPE = Path(__file__).parent.parent / "recipe"
sys.path.insert(0, str(RECIPE))
try:
    from corpora import Corpus, Rows, corpus
    from peers import PEERS, Run, measure_peer
finally:
    sys.path.remove(str(RECIPE))

MARKS = 20
OURS = "saebench"


class Mark(NamedTuple):
    examples: int
    seconds: float
    fvu: float


def curve(advance: Callable[[Tensor], object], measure: Callable[[], float], store: Rows, samples: int) -> list[Mark]:
    """Train to `samples`, with the FVU at 20 marks."""
    found: list[Mark] = []
    seconds, seen = 0.0, 0
    while seen < samples:
        started = time.process_time()
        x = store.next_batch()[: samples - seen]
        advance(x)
        seconds += time.process_time() - started
        seen += len(x)
        if seen * MARKS // samples > (seen - len(x)) * MARKS // samples:
            found.append(Mark(seen, seconds, measure()))
    return found


def ours(kind: str, texts: Corpus, options: argparse.Namespace, samples: int, seed: int) -> list[Mark]:
    """Our defaults for a budget."""
    sparsity = "k" if "k" in SAE_CONFIGS[kind].model_fields else "target_l0"
    config = SAE_CONFIGS[kind](dict_size=options.dict_size, **{sparsity: options.k})
    batch = default_batch_size(samples)
    store = Rows(texts, batch, seed)
    training = Training.start(config, TrainConfig(samples=samples, batch_size=batch), seed, store)

    def measure() -> float:
        training.calibrate()
        return evaluate(training.sae, store).values["eval/fvu"]

    return curve(training.advance, measure, store, samples)


def theirs(name: str, kind: str, texts: Corpus, options: argparse.Namespace, lr: float, seed: int) -> list[Mark]:
    """A peer's trainer at one lr."""
    batch = options.batch or default_batch_size(options.samples)
    steps = -(-options.samples // batch)
    run = Run(kind, texts.train.shape[1], options.dict_size, options.k, lr, steps, batch, options.coeff, seed)
    peer, store = PEERS[name](run), Rows(texts, batch, seed)
    mean = texts.train.mean(0)
    scale = peer.length / float((texts.train - mean).square().sum(1).mean().sqrt())
    return curve(
        lambda x: peer.step((x - mean) * scale),
        lambda: measure_peer(peer, texts, mean, scale)["fvu"],
        store,
        options.samples,
    )


def reached(marks: list[Mark], goal: float) -> Mark | None:
    """The first mark at or below the goal."""
    return next((mark for mark in marks if mark.fvu <= goal), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="wn2-minilm")
    parser.add_argument("--kind", default="topk")
    parser.add_argument("--dict-size", type=int, default=1536)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--coeff", type=float, help="of a peer's penalty, for types that have one")
    parser.add_argument("--samples", type=int, default=307_200)
    parser.add_argument("--budgets", nargs="*", type=int, default=[], help="smaller ones that ours is trained to")
    parser.add_argument("--batch", type=int, help="a peer's batch; without it, the one that ours takes")
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    parser.add_argument("--lrs", nargs="*", type=float, default=[2e-3, 4e-3, 8e-3])
    parser.add_argument("--lr", action="append", default=[], help="NAME=LR: what one peer is tried at")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = corpus(options.corpus)
    curves: dict[str, list[list[Mark]]] = {}
    for samples in (*options.budgets, options.samples):
        runs = [ours(options.kind, texts, options, samples, seed) for seed in options.seeds]
        curves[f"{OURS}, {samples:,} examples"] = runs
    for name in options.peers:
        own = [float(text.partition("=")[2]) for text in options.lr if text.partition("=")[0] == name]
        tried = {lr: theirs(name, options.kind, texts, options, lr, options.seeds[0]) for lr in own or options.lrs}
        best = min(tried, key=lambda lr: tried[lr][-1].fvu)
        rest = [theirs(name, options.kind, texts, options, best, seed) for seed in options.seeds[1:]]
        curves[f"{name}, lr {best:g}"] = [tried[best], *rest]
    ends = {name: statistics.median(marks[-1].fvu for marks in runs) for name, runs in curves.items()}
    goal = min((end for name, end in ends.items() if not name.startswith(OURS)), default=math.nan)
    print(f"| {options.kind}, {options.corpus} | final FVU | seconds | examples to {goal:.4f} | seconds to it |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, runs in curves.items():
        hits = [mark for marks in runs if (mark := reached(marks, goal)) is not None]
        whole = statistics.median(marks[-1].seconds for marks in runs)
        if len(hits) * 2 <= len(runs):
            print(f"| {name} | {ends[name]:.4f} | {whole:.1f} | not reached | |")
            continue
        examples, seconds = (
            statistics.median(getattr(hit, field) for hit in hits) for field in ("examples", "seconds")
        )
        print(f"| {name} | {ends[name]:.4f} | {whole:.1f} | {examples:,.0f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
