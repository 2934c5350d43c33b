"""Starting values that come from the data or a generator of one's own."""

from __future__ import annotations

import torch
from torch import Tensor

_MEDIAN_ROWS = 8192


def geometric_median(x: Tensor, steps: int = 100, tolerance: float = 1e-6) -> Tensor:
    """The point (d,) with the least sum of distances to the rows of x (N, d), float64.

    Weiszfeld's iteration as Vardi and Zhang (2000) complete it, so that a row that equals the guess divides nothing
    by zero. Ends when a step is shorter than `tolerance` times the mean distance; looks at 8192 rows at most.
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


def unit_rows(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Directions (rows, columns), uniform on the sphere."""
    return torch.nn.functional.normalize(torch.randn(rows, columns, generator=generator, dtype=torch.float32), dim=1)


def data_rows(rows: int, z: Tensor, centre: Tensor, generator: torch.Generator) -> Tensor:
    """Unit directions (rows, d) of training rows z (N, d) seen from `centre` (d,), in random order, each at most once;
    random ones where there are too few, or where a row equals the centre."""
    chosen = z[torch.randperm(len(z), generator=generator)[:rows]] - centre
    length = torch.linalg.vector_norm(chosen, dim=1, keepdim=True)
    found = unit_rows(rows, z.shape[1], generator)
    found[: len(chosen)] = torch.where(length > 1e-6, chosen / length, found[: len(chosen)])
    return found
