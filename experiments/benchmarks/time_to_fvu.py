"""Processor time and examples until a hold-out FVU is reached: ours with its defaults against other projects' trainers.

    RECIPE_DATA=... BATCHTOPK_CODE=... python experiments/benchmarks/time_to_fvu.py runs.jsonl --kind topk

Every trainer gets the same rows in the same order; a peer is tried at every lr of its list (`--lr NAME=LR`, several
times; without it `--lrs`) on the first seed and the best is repeated on the others; ours runs at `lr: null`. The goal
is the final FVU of the best peer. A run whose lr has not fallen yet is worse than one that ends there: `--budgets`
trains ours to smaller budgets, too. The start of ours is counted, that of a peer and measuring the hold-out are not.
One thread, processor time; median over the seeds. A run is appended to the file when it ends, with the machine's load;
the same command resumes and prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from saebench.config import SAE_CONFIGS, TrainConfig, default_batch_size
from saebench.trial.trainer import Training

RECIPE = Path(__file__).parent.parent / "recipe"
sys.path.insert(0, str(RECIPE))
try:
    from corpora import Corpus, Rows, corpus
    from peers import PEERS, Peer, Run, measure_peer
finally:
    sys.path.remove(str(RECIPE))

MARKS = 20
OURS = "saebench"
Setting = dict[str, Any]


class Mark(NamedTuple):
    examples: int
    seconds: float
    fvu: float
    l0: float | None = None
    """None in results that were written before it was measured."""


def curve(
    advance: Callable[[Tensor], object],
    measure: Callable[[], dict[str, float]],
    store: Rows,
    samples: int,
    seconds: float = 0.0,
) -> list[Mark]:
    """Train to `samples`, with FVU and L0 at 20 marks; `seconds` were needed before the first step."""
    found: list[Mark] = []
    seen = 0
    while seen < samples:
        started = time.process_time()
        x = store.next_batch()[: samples - seen]
        advance(x)
        seconds += time.process_time() - started
        seen += len(x)
        if seen * MARKS // samples > (seen - len(x)) * MARKS // samples:
            at = measure()
            found.append(Mark(seen, round(seconds, 3), round(at["fvu"], 5), round(at["l0"], 2)))
    return found


def ours(s: Setting, texts: Corpus) -> list[Mark]:
    """Our defaults for a budget."""
    sparsity = "k" if "k" in SAE_CONFIGS[s["kind"]].model_fields else "target_l0"
    config = SAE_CONFIGS[s["kind"]](dict_size=s["dict_size"], **{sparsity: s["k"]})
    store = Rows(texts, s["batch"], s["seed"])
    started = time.process_time()
    training = Training.start(config, TrainConfig(samples=s["samples"], batch_size=s["batch"]), s["seed"], store)
    start = time.process_time() - started

    def reconstruct(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = training.sae.encode(x)
        return training.sae.decode(codes), codes

    def measure() -> dict[str, float]:
        training.calibrate()
        plain = Peer(lambda _: None, reconstruct, 1.0)
        return measure_peer(plain, texts, torch.zeros(texts.train.shape[1]), 1.0)

    return curve(training.advance, measure, store, s["samples"], start)


def theirs(s: Setting, texts: Corpus) -> list[Mark]:
    """A peer's trainer at one lr."""
    steps, d_in = -(-s["samples"] // s["batch"]), texts.train.shape[1]
    run = Run(s["kind"], d_in, s["dict_size"], s["k"], s["lr"], steps, s["batch"], s.get("coeff"), s["seed"])
    peer, store = PEERS[s["trainer"]](run), Rows(texts, s["batch"], s["seed"])
    mean = texts.train.mean(0)
    scale = peer.length / float((texts.train - mean).square().sum(1).mean().sqrt())
    return curve(
        lambda x: peer.step((x - mean) * scale),
        lambda: measure_peer(peer, texts, mean, scale),
        store,
        s["samples"],
    )


class Book:
    """Curves by setting, kept in a file of JSON lines; one that is missing is trained."""

    def __init__(self, path: Path, train: Callable[[Setting], list[Mark]]) -> None:
        self.path, self.train = path, train
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.known = {json.dumps(x["setting"], sort_keys=True): [Mark(*mark) for mark in x["marks"]] for x in lines}

    def __call__(self, setting: Setting) -> list[Mark]:
        key = json.dumps(setting, sort_keys=True)
        if key not in self.known:
            marks = self.known[key] = self.train(setting)
            load = round(os.getloadavg()[0], 1)
            with self.path.open("a") as file:
                print(json.dumps({"setting": setting, "load": load, "marks": marks}), file=file)
            end = marks[-1]
            print(f"{setting}: FVU {end.fvu:.4f} at L0 {end.l0} in {end.seconds:.1f} s, load {load}", flush=True)
        return self.known[key]


def curves(book: Book, options: argparse.Namespace) -> Iterator[tuple[str, list[list[Mark]]]]:
    """Yield (name, a curve per seed) for ours at every budget, then each peer at its best lr."""
    common = {name: getattr(options, name) for name in ("corpus", "kind", "dict_size", "k")}
    for samples in (*options.budgets, options.samples):
        setting = {**common, "trainer": OURS, "samples": samples, "batch": default_batch_size(samples)}
        yield f"{OURS}, {samples:,} examples", [book({**setting, "seed": seed}) for seed in options.seeds]
    batch = options.batch or default_batch_size(options.samples)
    first, *others = options.seeds
    for name in options.peers:
        own = [float(text.partition("=")[2]) for text in options.lr if text.partition("=")[0] == name]
        setting = {**common, "trainer": name, "samples": options.samples, "batch": batch}
        setting |= {"coeff": options.coeff} if options.coeff else {}
        ends = {lr: book({**setting, "lr": lr, "seed": first})[-1].fvu for lr in own or options.lrs}
        best = min(ends, key=lambda lr: ends[lr])
        yield f"{name}, lr {best:g}", [book({**setting, "lr": best, "seed": s}) for s in (first, *others)]


NEAR = 1.02
"""A run under a penalty begins with many latents and a low FVU: a mark with more than this times the goal's L0 does not
count."""


def reached(marks: list[Mark], goal: float, l0: float) -> Mark | None:
    """Return the first mark at or below the goal, of those with an L0 that is not much above `l0`."""
    return next((mark for mark in marks if mark.fvu <= goal and not (mark.l0 or 0) > NEAR * l0), None)


def end_l0(runs: list[list[Mark]]) -> float | None:
    """Return the median L0 at the end, None if none was measured."""
    return statistics.median(known) if (known := [end.l0 for *_, end in runs if end.l0 is not None]) else None


def table(found: dict[str, list[list[Mark]]], title: str) -> list[str]:
    """Return the lines of a markdown table: medians over the seeds, time to the best peer's final FVU at its L0."""
    ends = {name: statistics.median(marks[-1].fvu for marks in runs) for name, runs in found.items()}
    goal, best = min(((end, name) for name, end in ends.items() if not name.startswith(OURS)), default=(math.nan, ""))
    at = end_l0(found.get(best, [])) or math.inf
    lines = [f"| {title} | final FVU | L0 | seconds | examples to {goal:.4f} | seconds to it |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, runs in found.items():
        hits = [mark for marks in runs if (mark := reached(marks, goal, at)) is not None]
        l0, whole = end_l0(runs), statistics.median(marks[-1].seconds for marks in runs)
        end = f"| {name} | {ends[name]:.4f} | {'' if l0 is None else f'{l0:.1f}'} | {whole:.1f} |"
        if len(hits) * 2 <= len(runs):
            lines.append(f"{end} not reached | |")
            continue
        examples, seconds = (statistics.median(hit[i] for hit in hits) for i in (0, 1))
        lines.append(f"{end} {examples:,.0f} | {seconds:.1f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
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
    book = Book(options.results, lambda s: (ours if s["trainer"] == OURS else theirs)(s, texts))
    print("\n".join(table(dict(curves(book, options)), f"{options.kind}, {options.corpus}")))


if __name__ == "__main__":
    main()
