"""The process of a trial: deterministic kernels, and the description of the machine in its record."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch

from saebench.config import TrainConfig


@contextlib.contextmanager
def exact(train: TrainConfig, device: str) -> Iterator[None]:
    """Use only deterministic kernels inside the context: always on the CPU, on CUDA if `deterministic` is set."""
    memory: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), memory.fill_uninitialized_memory
    if device == "cpu" or train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms(True) without 2 s of imports
        memory.fill_uninitialized_memory = False  # we read no uninitialised memory
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        memory.fill_uninitialized_memory = before[1]


def about(device: torch.device, attempt: int, resumed: str | None) -> dict[str, Any]:
    """Return the description of the process for a `start` event: device, threads, host, versions."""
    return {
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "threads": torch.get_num_threads(),
        "deterministic": torch.get_deterministic_debug_mode() == 2,
        "host": platform.node(),
        "pid": os.getpid(),
        "attempt": attempt,
        "resumed": resumed,
        "versions": {
            "saebench": version("saebench"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
