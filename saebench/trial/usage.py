"""Resource use and speed of a trial: its GPU's load by NVML, its process's memory and CPU time."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

EVERY = 10.0
"""Seconds between two samples, as in MLflow's own system metrics. Each sample adds two to four points to the trial's
record."""
_MEGABYTE = 1e6


class Usage:
    """Samples this process and one GPU, not the whole machine: other trials sample their own."""

    def __init__(self, uuid: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`uuid`: UUID of the GPU (or MIG slice) on which the trial runs; None on a CPU."""
        self._process, self._clock, self._looked = psutil.Process(), clock, -math.inf
        self._uuid = uuid

    def __call__(self, *, now: bool = False) -> dict[str, float]:
        """Return `system/...` metrics; {} if the last sample was less than EVERY seconds ago, unless `now`.

        Metrics that are unavailable are left out: the GPU's without a driver or nvidia-ml-py, and a MIG slice's
        utilisation."""
        if not now and self._clock() - self._looked < EVERY:
            return {}
        self._looked = self._clock()
        cpu = self._process.cpu_times()
        return {
            "system/process_memory_megabytes": self._process.memory_info().rss / _MEGABYTE,
            "system/process_cpu_seconds": cpu.user + cpu.system,
            **(_gpu(self._uuid) if self._uuid else {}),
        }


def _gpu(uuid: str) -> dict[str, float]:
    """Return the load of the whole GPU, all processes included: percent of the last second in which a kernel ran, and
    memory in use."""
    try:
        import pynvml
    except ImportError:
        return {}
    found: dict[str, float] = {}
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle: Any = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        found["system/gpu_memory_usage_megabytes"] = pynvml.nvmlDeviceGetMemoryInfo(handle).used / _MEGABYTE
        found["system/gpu_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return found


def gpu_uuid(device: torch.device) -> str | None:
    """Return NVML's UUID of the GPU or MIG slice `device`; None if it is not a GPU or its UUID is unknown."""
    if device.type != "cuda":
        return None
    leased = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[device.index or 0 :][:1]
    if leased and leased[0].startswith(("GPU-", "MIG-")):
        return leased[0]
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


class Speed:
    """Examples per second since the last call, without the time of evaluations and checkpoints."""

    def __init__(self, samples: int) -> None:
        self._samples, self._since = samples, time.monotonic()

    def __call__(self, samples: int) -> float:
        now = time.monotonic()
        speed = (samples - self._samples) / max(now - self._since, 1e-9)
        self._samples, self._since = samples, now
        return speed

    def pause(self, seconds: float) -> None:
        self._since += seconds
