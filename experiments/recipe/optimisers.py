"""Other optimisers in the place of Adam, at the recipe's start, decay and schedule; each at its best lr of a climb.

    python optimisers.py results.csv wn2-minilm boto-glove

muon: the momentum of both matrices, made orthogonal by five Newton-Schulz steps (Jordan et al. 2024), Adam for biases.
soap: Adam in the eigenbasis of the gradients' second moment on the side of d_in, renewed every ten steps (2409.11321).
schedule_free: Adam's steps, evaluated at the average of the iterates, no fall of lr (2405.15682).
by_firing: each latent's step times sqrt(mean count / its count) of recent firings, between 1/2 and 2.
Columns: lr factor (1 is Adam's default lr), hold-out FVU, seconds of processor time, of one thread; seed 0, then 1.
"""

from __future__ import annotations

import csv
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpora import Rows, corpus
from matched import climb
from torch import Tensor

from saebench.config import TopKConfig, TrainConfig
from saebench.trial.evaluation import evaluate
from saebench.trial.optim import Adam, clip_gradients
from saebench.trial.trainer import Training, train

SIZES = {50: (400, 8)}
"""d_in -> dict_size, k; others have 1,536 and 32."""


class Rule:
    """What a matrix's gradient becomes before it is taken off, lr times; matrices lie latent by latent."""

    def __init__(self, training: Training) -> None:
        self.sae, self.adam = training.sae, training.optimizer
        self.matrices = {n: p for n, p in training.sae.named_parameters() if p.ndim == 2}
        rest = [(n, p) for n, p in training.sae.named_parameters() if p.ndim == 1]
        self.rest = Adam(rest, {}, training.train, training.lr)
        self.state: dict[str, dict[str, Tensor]] = {name: {} for name in self.matrices}
        self.steps = 0

    def step(self, lr: float, clip: float) -> None:
        self.steps += 1
        clip_gradients([p.grad for p in self.sae.parameters() if p.grad is not None], clip)
        with torch.no_grad():
            for name, p in self.matrices.items():
                assert p.grad is not None
                rows, gradient = (p.t(), p.grad.t()) if name == "W_enc" else (p, p.grad)
                rows.sub_(lr * self.update(self.state[name], gradient))
                p.grad = None
        self.rest.step(lr, clip)

    def update(self, state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        raise NotImplementedError


class Muon(Rule):
    def update(self, state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        moment = state.setdefault("m", torch.zeros_like(gradient)).lerp_(gradient, 0.05)
        x = gradient.lerp(moment, 0.95).t()
        x = x / (x.norm() + 1e-12)
        for _ in range(5):
            a = x @ x.t()
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.t() * 0.2 * max(gradient.shape) ** 0.5  # the size of an Adam step


class Soap(Rule):
    def update(self, state: dict[str, Tensor], gradient: Tensor) -> Tensor:
        width = gradient.shape[1]
        if "c" not in state:
            state |= {"c": torch.zeros(width, width), "q": torch.eye(width)}
            state |= {"m": torch.zeros_like(gradient), "v": torch.zeros_like(gradient)}
        state["c"].lerp_(gradient.t() @ gradient, 0.05)
        if self.steps % 10 == 1:
            turned = torch.linalg.qr(state["c"] @ state["q"])[0] if self.steps > 1 else torch.linalg.eigh(state["c"])[1]
            state["q"] = turned
        q = state["q"]
        state["m"].lerp_(gradient, 0.1)
        inside = gradient @ q
        state["v"].lerp_(inside.square(), 0.001)
        m = state["m"] @ q / (1 - 0.9**self.steps)
        v = state["v"] / (1 - 0.999**self.steps)
        return (m / (v.sqrt() + 6e-10)) @ q.t()


class ScheduleFree:
    """y = 0.1 z + 0.9 x is where gradients are taken; x, the average of z, is what is evaluated."""

    def __init__(self, training: Training) -> None:
        self.sae, self.adam = training.sae, training.optimizer
        self.z = {n: p.detach().clone() for n, p in training.sae.named_parameters()}
        self.x = {n: p.detach().clone() for n, p in training.sae.named_parameters()}
        self.weight = 0.0

    @torch.no_grad()
    def step(self, lr: float, clip: float) -> None:
        before = {n: p.detach().clone() for n, p in self.sae.named_parameters()}
        self.adam.step(lr, clip)
        self.weight += lr**2
        share = lr**2 / self.weight
        for n, p in self.sae.named_parameters():
            self.z[n].add_(p - before[n])
            self.x[n].lerp_(self.z[n], share)
            p.copy_(self.z[n].lerp(self.x[n], 0.9))

    @torch.no_grad()
    def finish(self) -> None:
        for n, p in self.sae.named_parameters():
            p.copy_(self.x[n])
        self.sae.constrain()


class ByFiring:
    def __init__(self, training: Training) -> None:
        self.sae, self.adam, self.training = training.sae, training.optimizer, training
        self.count = torch.ones(training.sae.dict_size)

    @torch.no_grad()
    def step(self, lr: float, clip: float) -> None:
        fired = self.sae.b_enc.grad.ne(0).float() if self.sae.b_enc.grad is not None else self.count
        self.count.lerp_(fired + 1e-3, 0.02)
        factor = (self.count.mean() / self.count).sqrt().clamp(0.5, 2)
        before = {n: p.detach().clone() for n, p in self.sae.named_parameters() if n != "b_dec"}
        self.adam.step(lr, clip)
        for n, p in self.sae.named_parameters():
            if n in before:
                scale = factor[:, None] if n == "W_dec" else factor
                p.copy_(before[n] + scale * (p - before[n]))


OPTIMISERS: dict[str, Any] = {
    "adam": None, "muon": Muon, "soap": Soap, "schedule_free": ScheduleFree, "by_firing": ByFiring,
}  # fmt: skip


def run(name: str, texts: Any, factor: float, seed: int) -> tuple[float, float]:
    """Hold-out FVU and seconds."""
    dict_size, k = SIZES.get(texts.train.shape[1], (1536, 32))
    free = {"decay": 0.0} if name == "schedule_free" else {}
    fields = TrainConfig(samples=51_200, batch_size=256, lr_factor=factor, **free)
    store = Rows(texts, 256, seed)
    started = time.process_time()
    training = Training.start(TopKConfig(dict_size=dict_size, k=k), fields, seed, store)
    if OPTIMISERS[name] is not None:
        training.optimizer = OPTIMISERS[name](training)
    try:
        deque(train(training, store), maxlen=0)
    except FloatingPointError:
        return float("inf"), time.process_time() - started
    if isinstance(training.optimizer, ScheduleFree):
        training.optimizer.finish()
    training.calibrate()
    seconds = time.process_time() - started
    return evaluate(training.sae, store).values["eval/fvu"], seconds


def tune(name: str, corpus_name: str, write: Callable[[list[Any]], object]) -> None:
    """Seed 0 at every lr of the climb, seed 1 at the best."""
    texts = corpus(corpus_name)

    def value(factor: float, seed: int = 0) -> float:
        fvu, seconds = run(name, texts, factor, seed)
        write([corpus_name, name, factor, seed, f"{fvu:.4f}", f"{seconds:.1f}"])
        return fvu

    value(climb(value, 1.0, fine=True)[0], 1)


def _lines(results: Path) -> list[str]:
    return results.read_text().splitlines() if results.exists() else []


def main(results: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    done = {tuple(line.split(",")[:2]) for line in _lines(results) if line.split(",")[3:4] == ["1"]}
    for corpus_name in names:
        for name in OPTIMISERS:
            if (corpus_name, name) in done:
                continue
            with results.open("a", newline="") as file:
                tune(name, corpus_name, csv.writer(file).writerow)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
