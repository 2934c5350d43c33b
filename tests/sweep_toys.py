"""A target for whole sweeps in real processes: it trains by counting, deterministically, and can be told to die."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saebench.config import TrialConfig, marks
from saebench.runs.durable import write_json
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths


def train(
    config: TrialConfig,
    paths: TrialPaths,
    device: str,
    report: Callable[[Event], Verdict],
    *,
    cache_dir: Path,  # noqa: ARG001 - the signature of a target
    attempt: int,
    pending: Callable[[], Verdict],
) -> None:
    """An evaluation and a checkpoint at every mark. Waits 10 ms per step, or until the file `go` is there."""
    file = paths.checkpoint / "samples.json"
    samples = json.loads(file.read_text()) if file.exists() else 0
    report(Event("start", samples, info={"pid": os.getpid(), "device": device, "attempt": attempt}))
    faults = json.loads(os.environ.get("TOY_FAULTS", "{}"))
    at, total = set(marks(config.train)), config.train.samples
    while samples < total:
        time.sleep(float(os.environ.get("TOY_STEP", "0.005")))
        samples += config.train.batch_size
        value = 1 / (1 + samples * (config.train.lr or 1) * (1 + config.seed) * getattr(config.sae, "k", 1))
        asked = report(Event("step", samples, {"train/fvu": value, "train/loss": value}))
        _fail(faults.get(f"{config.number}:{attempt}:{samples}"))
        if samples in at:
            asked = report(Event("eval", samples, evaluation(value, config)))
            write_json(file, samples)
            report(Event("checkpoint", samples))
        asked = pending() if asked is Verdict.GO else asked
        if asked is not Verdict.GO and samples < total:
            write_json(file, samples)
            report(Event("left", samples, info={"why": asked.value}))
            return
    report(Event("done", samples, evaluation(value, config)))


def evaluation(value: float, config: TrialConfig) -> dict[str, float]:
    return {
        "eval/fvu": value,
        "eval/explained_variance": 1 - value,
        "eval/mse": math.sqrt(value),
        "eval/l0": float(getattr(config.sae, "k", 0)),
    }


def _fail(how: str | None) -> None:
    if how == "crash":
        raise RuntimeError("a toy crashed")
    if how == "diverge":
        raise FloatingPointError("train/loss is nan")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "import":
        raise ModuleNotFoundError("No module named 'nothing'")


def spec(**changes: Any) -> dict[str, Any]:
    """Four trials of a toy: 2 strata, 2 seeds. `cache: off` and a known model: nothing is encoded."""
    found: dict[str, Any] = {
        "name": "toy",
        "data": {
            "model": "all-MiniLM-L6-v2",
            "dataset": {"path": "text", "data_files": str(Path(__file__))},
            "num_examples": 1000,
            "cache": False,
        },
        "sae": [{"type": "topk", "k": [4, 8], "dict_size": 64}],
        "train": {"samples": 400, "batch_size": 10, "eval_every": 100, "lr": 0.01},
        "seeds": [0, 1],
        "prune": {"pruner": "none"},
        "run": {"devices": "cpu", "per_device": 2},
    }
    for key, value in changes.items():
        place = found
        *path, last = key.split("__")
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    return found
