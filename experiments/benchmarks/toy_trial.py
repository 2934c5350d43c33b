"""A trial that does next to nothing, after importing all that a real one imports: what is left is the orchestrator."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths


def config(number: int) -> TrialConfig:
    return TrialConfig(
        sweep="toy",
        number=number,
        stratum="topk",
        point=f"{number:x}",
        seed=0,
        data=DataConfig(model="none", dataset=DatasetConfig(path="none"), num_examples=100),
        sae=TopKConfig(k=4, dict_size=16),
        train=TrainConfig(samples=1000),
    )


def warm_up() -> None:
    from saebench.trial import run as trial

    trial.warm_up()


def train() -> dict[str, float]:
    """The time of the first line, and a step of something."""
    begin = time.time()
    import torch

    x = torch.ones(64, 64)
    return {"toy/began": begin, "eval/fvu": float((x @ x).mean()) / 128}


def run(config: TrialConfig, paths: TrialPaths, device: str, report: Callable[[Event], Verdict], **others: Any) -> None:
    """As a target of `LocalExecutor`."""
    del paths, device, others
    values = train()
    report(Event("start", 0))
    report(Event("done", config.train.samples, values))


def judged(
    config: TrialConfig, paths: TrialPaths, device: str, report: Callable[[Event], Verdict], **others: Any
) -> None:
    """As a target of `run_sweep`: with an evaluation that waits for its verdict."""
    del paths, device, others
    values = train()
    report(Event("start", 0))
    report(Event("eval", config.train.samples // 2, {"eval/fvu": values["eval/fvu"], "eval/l0": 4.0, "eval/mse": 0.1}))
    report(Event("done", config.train.samples, values))


if __name__ == "__main__":  # as a plain subprocess
    warm_up()
    values = train()
    Path(sys.argv[1]).write_text(Event("done", 1000, values).to_line())
