"""Targets for executor tests: what `run_trial` promises, without torch and in milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

# ruff: noqa: ARG001 (every toy has the signature of a target)
from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.errors import DataError
from saebench.runs.durable import write_json
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths

Report = Callable[[Event], Verdict]


def config(toy: str, number: int = 0, samples: int = 100) -> TrialConfig:
    """A trial that `play` plays as the function named `toy`."""
    return TrialConfig(
        sweep="toy",
        number=number,
        stratum="topk-k4-n16",
        point=toy,
        seed=0,
        data=DataConfig(model="toy", dataset=DatasetConfig(path="toy"), num_examples=10),
        sae=TopKConfig(k=4, dict_size=16),
        train=TrainConfig(samples=samples, batch_size=1, eval_every=10),
    )


def play(config: TrialConfig, *others: Any, **named: Any) -> None:
    globals()[config.point](config, *others, **named)


def count(config: TrialConfig, paths: TrialPaths, device: str, report: Report, **others: Any) -> None:
    """Counts to `samples`, an eval every 10, a checkpoint after each; 1 ms per step."""
    pending: Callable[[], Verdict] = others["pending"]
    file = paths.checkpoint / "state.json"
    begin = json.loads(file.read_text())["at"] if file.exists() else 0
    report(Event("start", begin, info={"pid": os.getpid(), "device": device, "attempt": others["attempt"]}))
    for at in range(begin + 1, config.train.samples + 1):
        time.sleep(0.001)
        asked = pending()
        if at % 10 == 0:
            asked = report(Event("eval", at, {"eval/fvu": 1 / at}))
            write_json(file, {"at": at})
            report(Event("checkpoint", at))
        if asked is Verdict.LEAVE:
            write_json(file, {"at": at})
            report(Event("left", at, info={"why": "leave"}))
            return
        if asked is Verdict.PRUNE:
            report(Event("left", at, info={"why": "prune"}))
            return
    report(Event("done", config.train.samples, {"eval/fvu": 1 / config.train.samples}))


def quick(config: TrialConfig, paths: TrialPaths, device: str, report: Report, **_: Any) -> None:
    report(Event("start", 0))
    report(Event("done", config.train.samples, {"eval/fvu": 0.5}))


def world(config: TrialConfig, paths: TrialPaths, device: str, report: Report, **others: Any) -> None:
    """Says what a worker sees of itself."""
    print("to the log")
    print("errors too", file=sys.stderr)
    torch = sys.modules.get("torch")
    info = {
        "device": device,
        "environment": {k: v for k, v in os.environ.items() if k.startswith(("CUDA", "OMP", "MLFLOW"))},
        "leader": os.getpgid(0) == os.getpid() == os.getsid(0),
        "cache_dir": str(others["cache_dir"]),
        "main": getattr(sys.modules["__main__"], "__file__", None),
        "torch_threads": None if torch is None else torch.get_num_threads(),
        "cuda": None if torch is None else torch.cuda.is_initialized(),
    }
    report(Event("start", 0, info=info))
    report(Event("done", 1))


def crashes(*_: Any, **__: Any) -> None:
    raise RuntimeError("the sky\nis falling")


def diverges(*_: Any, **__: Any) -> None:
    raise FloatingPointError("train/loss is nan at 300 samples")


def has_bad_data(*_: Any, **__: Any) -> None:
    raise DataError("no column text")


def runs_out_of_gpu_memory(*_: Any, **__: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")


def exits(*_: Any, **__: Any) -> None:
    sys.exit(3)


def vanishes(*_: Any, **__: Any) -> None:
    os._exit(0)


def segfaults(*_: Any, **__: Any) -> None:
    signal.raise_signal(signal.SIGSEGV)


def sleeps(config: TrialConfig, paths: TrialPaths, device: str, report: Report, **_: Any) -> None:
    """Never looks at what it is asked, and has a child in its group."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    report(Event("start", 0, info={"pid": os.getpid(), "child": child.pid}))
    while True:
        time.sleep(0.05)


def done_then_killed(config: TrialConfig, paths: TrialPaths, device: str, report: Report, **_: Any) -> None:
    report(Event("done", 1))
    os.kill(os.getpid(), signal.SIGKILL)
