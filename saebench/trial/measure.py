"""Time a training step on this machine, on random rows; `saebench plan` estimates a sweep's duration from it.

`measure` runs `python -m saebench.trial.measure`, so that the calling process does not import torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from saebench import telemetry
from saebench.config import TrialConfig
from saebench.python_path import python_path

SECONDS, LONGEST = 0.5, 3.0
"""Seconds of timed steps per configuration; up to LONGEST if no step was undisturbed."""
LEAST_STEPS = 20
WARM_UP = 2
"""Steps before the timed ones: the first allocate memory and choose kernels."""
ROWS = 8192
"""Number of random rows from which training is initialised and batches are drawn."""


@dataclass(frozen=True)
class Measured:
    """Seconds."""

    examples: list[float]
    """Seconds per training example, for each configuration."""
    text: float | None
    """Seconds to encode one text; None without texts."""


def measure(
    configs: Sequence[TrialConfig], d_in: int, device: str, threads: int, texts: Sequence[str] = ()
) -> Measured | None:
    """Time training steps of each configuration and the encoding of `texts`; return None if the child failed (out of
    memory, for example)."""
    request = {
        "configs": [config.model_dump(mode="json") for config in configs],
        "d_in": d_in,
        "device": "cuda:0" if device.startswith("cuda") else device,
        "texts": list(texts),
    }
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        **({"CUDA_VISIBLE_DEVICES": device.removeprefix("cuda:")} if device.startswith("cuda:") else {}),
        "PYTHONPATH": python_path(),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "saebench.trial.measure"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
    )
    if ran.returncode:
        return None
    return Measured(**json.loads(ran.stdout.splitlines()[-1]))


def seconds_per_example(config: TrialConfig, d_in: int, device: str) -> float:
    """Train on random rows for SECONDS to LONGEST and return the time of the fastest step, which is the least disturbed
    by other processes. Runs in the child."""
    import torch

    from saebench.trial.trainer import Training

    store = _RandomRows(d_in, config.train.batch_size)
    training = Training.start(config.sae, config.train, config.seed, store, device)
    for _ in range(WARM_UP):
        training.advance(store.next_batch())
    training.check()
    begun, seconds = time.perf_counter(), list[float]()
    while len(seconds) < 2 or time.perf_counter() < begun + (SECONDS if len(seconds) >= LEAST_STEPS else LONGEST):
        start = time.perf_counter()
        training.advance(store.next_batch())
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / config.train.batch_size


def seconds_per_text(config: TrialConfig, device: str, texts: Sequence[str]) -> float:
    """Encode `texts` twice and time the second pass; runs in the child."""
    from saebench.stores.sentence_encoder import SentenceEncoder

    encoder = SentenceEncoder(config.data, device)
    encoder.embed(texts)
    start = time.perf_counter()
    encoder.embed(texts)
    return (time.perf_counter() - start) / len(texts)


class _RandomRows:
    """A store of normal rows."""

    def __init__(self, d_in: int, batch_size: int) -> None:
        import torch

        self.d_in, self.num_train = d_in, 10 * ROWS
        self._rows = torch.randn(max(ROWS, batch_size), d_in, generator=torch.Generator().manual_seed(0))
        self._batch = batch_size

    def next_batch(self) -> Any:
        return self._rows[: self._batch]

    def sample(self, n: int) -> Any:
        return self._rows[:n]

    def set_aside(self, n: int, places: Any) -> None:
        """Not needed to time a step."""

    def train_labels(self, n: int) -> None:  # noqa: ARG002 - a store's signature
        return None

    def validation(self, batch_size: int = 8192) -> Iterator[Any]:
        yield self._rows[:batch_size]

    def test(self, batch_size: int = 8192) -> Iterator[Any]:
        yield self._rows[:batch_size]

    def validation_labels(self) -> None:
        return None

    def test_labels(self) -> None:
        return None


if __name__ == "__main__":
    telemetry.disable()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    given = json.loads(sys.stdin.read())
    trials = [TrialConfig.model_validate(config) for config in given["configs"]]
    where = given["device"]
    examples = [seconds_per_example(trial, given["d_in"], where) for trial in trials]
    text = seconds_per_text(trials[0], where, given["texts"]) if given["texts"] else None
    answer.write(json.dumps({"examples": examples, "text": text}) + "\n")
    answer.flush()
