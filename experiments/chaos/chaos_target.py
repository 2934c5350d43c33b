"""`run_trial` with a trapdoor: a file `fault` in the trial's directory makes its next event fail in that way, once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import torch

from saebench.config import TrialConfig
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths
from saebench.trial import run as trial


def run_trial(
    config: TrialConfig,
    paths: TrialPaths,
    device: str,
    report: Callable[[Event], Verdict],
    *,
    cache_dir: Path,
    attempt: int,
    pending: Callable[[], Verdict],
) -> None:
    def asked() -> Verdict:
        fault = paths.root / "fault"
        if fault.exists():
            kind = fault.read_text()
            fault.unlink()
            fail(kind)
        return pending()

    trial.run_trial(config, paths, device, report, cache_dir=cache_dir, attempt=attempt, pending=asked)


def fail(kind: str) -> None:
    if kind == "nan":
        raise FloatingPointError("train/loss is nan (injected)")
    if kind == "cuda_oom":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB (injected)")
    if kind == "disk_full":
        raise OSError(errno.ENOSPC, "No space left on device (injected)")
    if kind == "crash":
        raise RuntimeError("device-side assert triggered (injected)")
