"""The loss as a function of the searched parameters near its minimum: a parabola per parameter, fitted through the
points around the best one, with the uncertainty of its centre.

Measured: log FVU = least + 0.07 (ln lr/lr_best)^2, linear far away, often steeper on one side than on the other. A
single parameter with enough points therefore gets a curvature per side of the centre; a symmetric fit would place the
optimum too near the flat side (simulated in experiments/verdict: twins called different in 9% of sweeps).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
NOISE = 0.002
"""Standard deviation of log FVU of one point over seeds, a seed's own effect left out (measured: 0.1 to 0.4%); the
least noise that a fit assumes; larger residuals replace it."""
NEAR = 5
"""Points besides the best one that a fit uses per parameter."""
FAR = 0.15
"""Loss above the best one beyond which a point carries no information about the parabola (it is flat for a tenth)."""
CLOSE = 0.03
"""Loss above the best one over which a point's weight in the fit falls to 0.6, then to 0.01: far from the optimum the
loss is not a parabola, and such a point would bias the fitted optimum."""
_STEPS = 101
"""Centres that a fit with two curvatures tries."""


@dataclass(frozen=True)
class Parabola:
    """loss = least + sum over ranges of curvature (x - centre)^2, with a curvature on either side of the centre."""

    centre: Array
    below: Array
    """Curvatures where x is below the centre."""
    beyond: Array
    """Curvatures where x is above it."""
    centre_error: Array
    """Standard error of the centre."""
    window: NDArray[np.bool_]
    """Points that were fitted."""

    @property
    def curvature(self) -> Array:
        """The mean of both sides."""
        return (self.below + self.beyond) / 2

    @property
    def uncertainty(self) -> float:
        """Return the expected increase of the loss due to the error of the centre."""
        return float((self.curvature * self.centre_error**2).sum())

    def above(self, x: Array) -> Array:
        """Loss above the least one, at each row of `x`."""
        offset = np.atleast_2d(x) - self.centre
        found: Array = (offset**2 * np.where(offset < 0, self.below, self.beyond)).sum(1)
        return found


def fewest_points(dims: int) -> int:
    """Return the points below which no parabola in so many ranges can be fitted."""
    return 2 * dims + 1


def fit(x: Array, y: Array) -> Parabola | None:
    """Return the parabola through the points around the best one; None if they do not form one.

    `x` has a row per point with its shares of the ranges, `y` their losses.
    """
    dims, best = x.shape[1], int(np.argmin(y))
    window = _window(x, y, best)
    if window.sum() < fewest_points(dims):
        return None
    rows, offset = x[window] - x[best], y[window] - y[best]
    weight = np.maximum(0.01, np.exp(-0.5 * (offset / CLOSE) ** 2))
    found = _symmetric(rows, offset, weight)
    if found is not None and dims == 1 and len(rows) >= NEAR:
        found = _two_sided(rows[:, 0], offset, weight, found)
    if found is None:
        return None
    centre, below, beyond, error = found
    return Parabola(x[best] + centre, below, beyond, error, window)


_Fitted = tuple[Array, Array, Array, Array]
"""Centre, curvatures below and beyond it, standard error of the centre."""


def _window(x: Array, y: Array, best: int) -> NDArray[np.bool_]:
    """The points nearest to the best one, without those far above it if enough others remain."""
    dims = x.shape[1]
    window = np.zeros(len(y), dtype=bool)
    window[np.argsort(np.abs(x - x[best]).sum(1), kind="stable")[: NEAR + 2 * (dims - 1)]] = True
    close = window & (y <= y[best] + FAR)
    return close if close.sum() >= fewest_points(dims) else window


def _symmetric(rows: Array, offset: Array, weight: Array) -> _Fitted | None:
    """The same curvature on both sides: linear least squares."""
    dims = rows.shape[1]
    design = np.column_stack([np.ones(len(rows)), rows, rows**2])
    if np.linalg.matrix_rank(design * weight[:, None], tol=1e-6) < design.shape[1]:
        return None
    found, *_ = np.linalg.lstsq(design * weight[:, None], offset * weight, rcond=None)
    slope: Array = np.asarray(found[1 : 1 + dims], dtype=np.float64)
    curvature: Array = np.asarray(found[1 + dims :], dtype=np.float64)
    if (curvature <= 0).any():
        return None
    covariance = _covariance(design, weight, (offset - design @ found) * weight)
    errors = np.empty(dims)
    for i in range(dims):
        gradient = np.zeros(design.shape[1])
        gradient[1 + i], gradient[1 + dims + i] = -1 / (2 * curvature[i]), slope[i] / (2 * curvature[i] ** 2)
        errors[i] = math.sqrt(max(0.0, float(gradient @ covariance @ gradient)))
    centre: Array = -slope / (2 * curvature)
    return centre, curvature, curvature, errors


def _two_sided(x: Array, offset: Array, weight: Array, start: _Fitted) -> _Fitted:
    """Fit a curvature per side of the centre, which differ by about their mean; return `start` if no centre between the
    points gives two positive curvatures."""
    prior = np.array([0.0, 1.0, -1.0]) * NOISE / float(start[1][0])
    centres = np.linspace(float(x.min()), float(x.max()), _STEPS)[1:-1]
    sides = _sides(x, centres[:, None]) * weight[:, None]
    designs = np.concatenate([sides, np.broadcast_to(prior, (len(centres), 1, 3))], axis=1)
    wanted = np.append(offset * weight, 0.0)
    square = np.swapaxes(designs, 1, 2) @ designs
    square += 1e-12 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    each: Array = np.linalg.solve(square, (np.swapaxes(designs, 1, 2) @ wanted)[..., None])[..., 0]
    misfit = ((wanted - (designs @ each[..., None])[..., 0]) ** 2).sum(1)
    misfit[(each[:, 1:] <= 0).any(1)] = np.inf
    least = int(misfit.argmin())
    if not math.isfinite(misfit[least]):
        return start
    place, found = float(centres[least]), each[least]
    there = _sides(x, place)
    moved = -2 * (x - place) * np.where(x < place, found[1], found[2])
    design = np.column_stack([there, moved])
    pinned = np.vstack([design, np.append(prior, 0.0)])
    left = np.append((offset - there @ found) * weight, prior @ found)
    covariance = _covariance(pinned, np.append(weight, 1.0), left)
    error = math.sqrt(max(0.0, float(covariance[3, 3])))
    return np.array([place]), found[1:2], found[2:3], np.array([error])


def _sides(x: Array, centre: float | Array) -> Array:
    """Columns: 1, the squared distance of points below the centre, that of points above it; for several centres, a
    matrix each."""
    offset = x - centre
    below, beyond = np.where(offset < 0, offset**2, 0), np.where(offset < 0, 0, offset**2)
    return np.stack([np.ones_like(offset), below, beyond], axis=-1)


def _covariance(design: Array, weight: Array, left: Array) -> Array:
    """Covariance of the coefficients: noise at least NOISE, more if the residuals `left` are larger."""
    freedom = len(left) - design.shape[1]
    sd = max(NOISE, math.sqrt(float((left**2).sum()) / freedom) if freedom > 0 else 0.0)
    return np.asarray(np.linalg.pinv((design * weight[:, None] ** 2).T @ design) * sd**2, dtype=np.float64)
