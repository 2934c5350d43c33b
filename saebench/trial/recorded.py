"""Read the end of a trial's record, and convert metrics for the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

import torch
from torch import Tensor

from saebench.runs.events import Event


def recorded_end(events: Sequence[Event]) -> Event | None:
    """Return the `done`, or the `left` for pruning, that ends a trial's record; None if the record has no such end."""
    done = next((event for event in events if event.type == "done"), None)
    pruned = events[-1] if events and events[-1].type == "left" and events[-1].info.get("why") == "prune" else None
    return done or pruned


def recorded_threads(events: Iterable[Event]) -> int | None:
    """Return the number of threads of the first attempt: the last bits of sums depend on it."""
    return next((event.info["threads"] for event in events if event.type == "start" and "threads" in event.info), None)


def numbers(metrics: dict[str, Tensor | float]) -> dict[str, float]:
    """Return metrics as floats, with a single transfer for all that are on a device."""
    on_device = {key: value for key, value in metrics.items() if isinstance(value, Tensor)}
    read_off = torch.stack([_wide(value) for value in on_device.values()]).tolist() if on_device else []
    known = dict(zip(on_device, read_off, strict=True))
    return {key: float(known.get(key, 0.0) if key in known else value) for key, value in metrics.items()}


def _wide(value: Tensor) -> Tensor:
    """Convert to the widest floating type of the device: float64, or float32 on MPS."""
    return value.detach().float() if value.device.type == "mps" else value.detach().double()


def finite(values: dict[str, float], samples: int) -> dict[str, float]:
    """Return `values`; raise FloatingPointError if one is NaN or infinite."""
    for key, value in values.items():
        if not isfinite(value):
            raise FloatingPointError(f"{key} is {value} at {samples} samples")
    return values
