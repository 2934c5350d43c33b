"""What a trial takes of its machine, and how fast it is: its GPU's load by NVML, its process's memory and CPU time."""

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
"""Seconds between two looks: as often as MLflow itself looks where it is asked to. Each is two to four points more in
the trial's record."""
_MEGABYTE = 1e6


class Usage:
    """Looks at this process and at one GPU, not at the whole machine: the trials beside it are others' business."""

    def __init__(self, uuid: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`uuid`: of the GPU (or MIG slice) that the trial was given; None on a CPU."""
        self._process, self._clock, self._looked = psutil.Process(), clock, -math.inf
        self._uuid = uuid

    def __call__(self, *, now: bool = False) -> dict[str, float]:
        """`system/...` metrics; empty where the last look was less than EVERY seconds ago, unless `now`.

        What cannot be had is left out: without a driver, without nvidia-ml-py, and a MIG slice has no utilisation."""
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
    """Of the whole GPU, whoever uses it: percent of the last second in which a kernel ran, and memory in use."""
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
    """As NVML names the GPU, or the slice of one, that is `device`; None where it is none, or does not say."""
    if device.type != "cuda":
        return None
    leased = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[device.index or 0 :][:1]
    if leased and leased[0].startswith(("GPU-", "MIG-")):
        return leased[0]
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return f"GPU-{uuid}" if uuid else None


class Speed:
    """Examples per second since the last question, evaluations and checkpoints not counted."""

    def __init__(self, samples: int) -> None:
        self._samples, self._since = samples, time.monotonic()

    def __call__(self, samples: int) -> float:
        now = time.monotonic()
        speed = (samples - self._samples) / max(now - self._since, 1e-9)
        self._samples, self._since = samples, now
        return speed

    def pause(self, seconds: float) -> None:
        self._since += seconds
