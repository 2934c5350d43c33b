"""Initial values computed from the data or from a given generator."""

from __future__ import annotations

import torch
from torch import Tensor

_MEDIAN_ROWS = 8192


def geometric_median(x: Tensor, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """Return the point (d,) with the smallest sum of distances to the rows of x (N, d), float64.

    Weiszfeld's iteration with the correction of Vardi and Zhang (2000), so that a row equal to the current estimate
    causes no division by zero. Stops when a step is shorter than `tolerance` times the mean distance; uses at most 8192
    rows.
    """
    x = x[:_MEDIAN_ROWS].double()
    guess = x.mean(0)
    for _ in range(steps):
        difference = x - guess
        distance = difference.norm(dim=1)
        away = distance > 1e-12 * distance.max()
        if not away.any():
            return guess
        weight = torch.where(away, 1 / distance.where(away, torch.ones_like(distance)), 0)
        pull = weight @ difference
        here, strength = len(x) - int(away.sum()), float(pull.norm())
        if strength <= here:
            return guess
        step = pull / weight.sum() * (1 - here / strength)
        guess = guess + step
        if step.norm() < tolerance * distance.mean():
            break
    return guess


def training_variance(z: Tensor) -> Tensor:
    """Return the mean squared distance of training rows z (N, d) from their mean, float64; raise ValueError if the rows
    are all the same."""
    variance = (z.double() - z.double().mean(0)).square().sum(1).mean()
    if not variance > 1e-12 * z.double().square().sum(1).mean():
        raise ValueError("the training rows are all the same: there is no variance to explain")
    return variance


def unit_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Return directions (rows, columns), uniform on the sphere."""
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float32), dim=1)


def data_rows(rows: int, z: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Return the unit directions (rows, d) from `centre` (d,) to training rows z (N, d), in random order, each row used
    at most once; random directions if there are too few rows, or for a row that equals the centre."""
    chosen = z[torch.randperm(len(z), generator=generator)[:rows]] - centre
    length = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    found = unit_rows(rows, z.shape[1], generator)
    found[: len(chosen)] = torch.where(length > 1e-6, chosen / length, found[: len(chosen)])
    return found
