"""The optimiser and its schedule, as shares of the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from saebench.config import TrainConfig


def default_lr(dict_size: int) -> float:
    """2e-4 / sqrt(dict_size / 2^14) (Gao et al. 2024: lr falls as the square root of the width)."""
    return float(2e-4 / (dict_size / 2**14) ** 0.5)


def schedule(before: float, after: float, train: TrainConfig) -> float:
    """Factor of the learning rate for the step that takes the run from share `before` to `after`: a rise from 0 that
    the first step is part of, and a fall to 0 that the last step is part of; neither is ever 0."""
    rise = min(1.0, after / train.warmup) if train.warmup else 1.0
    fall = min(1.0, (1 - before) / train.decay) if train.decay else 1.0
    return rise * fall


def adam(
    parameters: Iterable[tuple[str, nn.Parameter]], factors: Mapping[str, float], train: TrainConfig, lr: float
) -> torch.optim.Adam:
    """Adam over named parameters, fused where there is such a kernel; a group's `factor` multiplies its learning rate
    (1 where `factors` does not name the parameter)."""
    groups = [{"params": [p], "factor": factors.get(name, 1.0)} for name, p in parameters]
    fused = all(group["params"][0].device.type in ("cpu", "cuda") for group in groups)  # type: ignore[index]
    return torch.optim.Adam(groups, lr=lr, betas=(train.beta1, train.beta2), eps=train.eps, fused=fused)
