"""Whether the Gram matrices of a pursuit fit the memory: asked before the first step."""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from saebench.errors import UserError

_SMALL = 1 << 26
"""Bytes below which nothing is asked."""
_CGROUP = Path("/sys/fs/cgroup")


class TooWideError(UserError):
    """Raised if the matrices do not fit the device at all: another attempt would fail likewise."""


class GramMemoryError(UserError, MemoryError):
    """Raised if they do not fit what is free now: another attempt may find more."""


def check_memory(dict_size: int, device: torch.device, copies: int) -> None:
    """Raise TooWideError or GramMemoryError if `copies` Gram matrices of `dict_size` latents do not fit `device`."""
    needed = copies * 4 * dict_size**2
    if needed <= _SMALL or (found := memory(device)) is None:
        return
    total, free = found
    products = f"dict_size {dict_size}: the products of its latents with each other take {needed / 2**30:.1f} GiB"
    if needed > total:
        raise TooWideError(f"{products}, {device.type} has {total / 2**30:.1f} GiB in all: choose a smaller dict_size")
    if needed > free:
        raise GramMemoryError(
            f"{products}, {free / 2**30:.1f} GiB are free on {device.type}: choose a smaller dict_size, or run fewer "
            "trials at a time (run.per_device)"
        )


def memory(device: torch.device) -> tuple[int, int] | None:
    """Return (total, free) bytes of a CPU or a CUDA device; None for others."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    import psutil

    machine = psutil.virtual_memory()
    total, free = int(machine.total), int(machine.available)
    with contextlib.suppress(OSError, ValueError):  # no limit of a container, or "max"
        limit, used = (int((_CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
        total, free = min(total, limit), min(free, limit - used)
    return total, free
