"""Which devices there are, and their division into slots; without torch, and without ever starting CUDA."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """A place where one trial can run: a device, or a share of one."""

    id: int
    device: str
    """cpu | cuda:<uuid> | mps; inside the worker a CUDA device is always cuda:0."""
    name: str
    """For people: "cpu 0", "cuda 1: NVIDIA H200"."""
    threads: int = 1
    """Cores that the worker may use."""
    memory_fraction: float | None = None
    """Largest share of the device's memory, where it is shared."""
