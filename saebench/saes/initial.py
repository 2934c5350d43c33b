"""Initial values computed from the data or from a given generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_MEDIAN_ROWS = 8192
_POWER_STEPS = 4
_ROTATIONS = 40
_TURN = 1e-3
"""The rotation ends when no component turns by more than this (1 - cosine) in a step."""


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
    found = unit_rows(rows, z.shape[1], generator)
    found[: len(chosen)] = _unit_length(chosen, 1e-6, found[: len(chosen)])
    return found


def _unit_length(rows: Tensor, least: float, others: Tensor) -> Tensor:
    """Return rows (N, d) divided by their length; for one of length `least` or less that of `others` (N, d)."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return torch.where(length > least, rows / length, others)


def component_rows(
    rows: int, z: Tensor, centre: Tensor, count: int, generator: torch.Generator, *, signed: bool = False
) -> Tensor:
    """Return unit directions (rows, d): first `count` independent components of training rows z (N, d), each with its
    opposite unless latents are `signed`, the one that explains most first; then rows of the data as in `data_rows`,
    less what lies in the subspace of the components.

    So what many rows have in common is written by latents of its own, and the others are left what is particular.
    """
    found = data_rows(rows, z, centre, generator)
    subspace, components = independent_components(z, count, generator)
    found = _unit_length(found - (found @ subspace.t()) @ subspace, 1e-3, found)
    if not signed:
        components = torch.stack([components, -components], 1).flatten(0, 1)
    found[: len(components)] = components
    return found


def component_count(l0: float, dict_size: int, d_in: int, *, signed: bool = False) -> int:
    """Return how many components an SAE starts from: the root of L0 times 128 or d_in / 3, whichever is smaller, and no
    more than that; if latents are `signed`, at least twice L0 up to there. At most a quarter of the latents start as
    components or their opposites (experiments/recipe)."""
    most = min(128.0, d_in / 3)
    count = math.sqrt(min(l0, most) * most)
    if signed:
        return min(round(max(count, 2 * min(l0, most))), dict_size // 4)
    return min(round(count), dict_size // 8)


def independent_components(z: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return (basis, components) of rows z (N, d): the orthonormal basis (count, d) of their first principal components
    and, in its span, the unit directions (count, d) of their independent components, by falling variance; fewer if
    the rows span less.

    Principal components by subspace iteration (Halko et al. 2011, algorithm 4.4), rotated by FastICA with tanh and
    symmetric orthogonalisation (Hyvarinen 1999), from a random rotation.
    """
    x = z - z.mean(0)
    count = min(count, *x.shape)
    basis = torch.linalg.qr(torch.randn(x.shape[1], count, generator=generator, dtype=x.dtype)).Q
    for _ in range(_POWER_STEPS):
        basis = torch.linalg.qr(x.t() @ (x @ basis)).Q
    _, spread, axes = torch.linalg.svd(x @ basis, full_matrices=False)
    full = spread > 1e-4 * spread[:1]
    axes, spread = (axes @ basis.t())[full], spread[full] / math.sqrt(len(x))
    white = x @ (axes.t() / spread)
    rotation = torch.linalg.qr(torch.randn(len(axes), len(axes), generator=generator, dtype=x.dtype)).Q
    for _ in range(_ROTATIONS):
        bent = torch.tanh(white @ rotation)
        moved = white.t() @ bent / len(x) - rotation * (1 - bent.square()).mean(0)
        left, _, right = torch.linalg.svd(moved)
        before, rotation = rotation, left @ right
        if ((before * rotation).sum(0).abs() > 1 - _TURN).all():
            break
    components = (rotation.t() * spread) @ axes
    length = torch.linalg.vector_norm(components, dim=1, keepdim=True)
    return axes, (components / length)[length.squeeze(1).argsort(descending=True)]
