"""The loss as a function of the searched parameters: where to measure next, which point to choose, and how far that
point may be from the best one.

Pure functions over measured points: no Optuna, no MLflow, no torch. The search proposes points with `propose`, records
`choose`'s answer beside the trials that compare, and the report widens its intervals by the `gap` it finds there.

Near its least value the loss of a setting is a parabola in each searched range (measured: log FVU = least +
0.07 (ln lr/lr_best)^2, linear far away, a steep cliff above), so the points around the best one are fitted by a
quadratic without cross terms. Values are losses: `loss` turns an objective into one, in units in which differences
between arms are read (log for ratios, the metric itself for differences).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saebench.parabola import FAR, NOISE, Parabola, fit

Array = NDArray[np.float64]
SAME = 0.015
"""Share of a range below which two settings are the same."""
REACH = 0.05
"""Share of a range: two points closer than this are the same setting, and a point closer than this to the range's end
lies at its edge."""
CERTAIN = 3 * NOISE
"""Loss by which one point is certainly worse than another: two standard deviations of their difference."""
DENSITY = 1.5
"""One drawn point per this factor of a log range locates the optimum (eight on a factor of thirty)."""


@dataclass(frozen=True)
class Axis:
    """One searched range, as shares of it: 0 at `low`, 1 at `high`."""

    name: str
    low: float
    high: float
    log: bool = False
    integer: bool = False
    step: float | None = None

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def value(self, share: float) -> float:
        share = min(1.0, max(0.0, share))
        found = self.low * (self.high / self.low) ** share if self.log else self.low + share * (self.high - self.low)
        step = self.step or (1.0 if self.integer else None)
        if step is not None:
            found = self.low + round((found - self.low) / step) * step
        return min(self.high, max(self.low, found))


@dataclass(frozen=True)
class Measured:
    """One point of the search and its loss."""

    at: tuple[float, ...]
    """Position in every range, as a share of it."""
    loss: float


@dataclass(frozen=True)
class Choice:
    """The chosen point and how well it is known to be the best one."""

    index: int
    """Index of the chosen point among the given ones."""
    gap: float
    """Expected loss of the chosen point above the best of the ranges; infinite if unknown."""
    edge: tuple[str, ...] = ()
    """Ranges at whose end the best point lies: a wider range may hold a better one."""
    needed: int | None = None
    """Drawn points that would locate the optimum, if there were too few; else None."""


def loss(value: float, *, ratio: bool, maximize: bool) -> float:
    """Return an objective as a loss: its logarithm if arms are compared by their ratio, else itself; negated if more is
    better. NaN if the logarithm does not exist."""
    if ratio:
        value = math.log(value) if value > 0 else math.nan
    return -value if maximize else value


def propose(points: Sequence[Measured], dims: int, room: int, resolution: float = NOISE / 8) -> list[tuple[float, ...]]:
    """Return where to measure next, as shares of every range, at most `room` points; none once the best one is located
    to within `resolution` of loss. These are the fitted optimum, points on both sides of it if none is near, and the
    end of the range if the best point is the outermost one.
    """
    points = [point for point in points if math.isfinite(point.loss)]
    if not points or not dims:
        return []
    x, y = np.array([p.at for p in points]), np.array([p.loss for p in points])
    best = x[int(np.argmin(y))]
    wanted: list[Array] = []
    for i in range(dims):
        for end in (0.0, 1.0):
            outermost = best[i] == (x[:, i].min() if end == 0.0 else x[:, i].max())
            if outermost and abs(best[i] - end) > REACH:
                wanted.append(np.array([end if j == i else best[j] for j in range(dims)]))
    parabola = fit(x, y)
    if parabola is not None:
        wanted += _around(parabola, x, resolution)
    elif not wanted:
        wanted += _bracket(best, x)
    return _distinct(wanted, x)[:room]


def _around(parabola: Parabola, x: Array, resolution: float) -> list[Array]:
    """Return the optimum, if its loss differs from the nearest point's by more than `resolution`, and its sides."""
    centre = np.clip(parabola.centre, 0.0, 1.0)
    wanted = []
    if float(parabola.above(x).min()) > resolution or parabola.uncertainty > resolution:
        wanted.append(centre)
    for i, curvature in enumerate(parabola.curvature):
        side = float(np.clip(math.sqrt(10 * NOISE / curvature), 2 * REACH, 0.25))
        for sign in (-1.0, 1.0):
            target = centre.copy()
            target[i] = min(1.0, max(0.0, target[i] + sign * side))
            gaps = sign * (x[:, i] - centre[i])
            if not ((gaps > 0.4 * side) & (gaps < 2 * side)).any():
                wanted.append(target)
    return wanted


def _bracket(best: Array, x: Array) -> list[Array]:
    """Return the midpoints to the neighbours of the best point, for points that no parabola fits."""
    wanted = []
    for i in range(len(best)):
        for sign in (-1.0, 1.0):
            gaps = sign * (x[:, i] - best[i])
            nearest = float(gaps[gaps > 0].min()) if (gaps > 0).any() else 0.0
            if nearest > 2 * REACH:
                target = best.copy()
                target[i] += sign * nearest / 2
                wanted.append(target)
    return wanted


def _distinct(wanted: Sequence[Array], x: Array) -> list[tuple[float, ...]]:
    """Return those that are not measured or proposed already."""
    known, found = list(x), []
    for point in wanted:
        if all(float(np.abs(point - other).max()) > SAME for other in known):
            known.append(point)
            found.append(tuple(float(share) for share in point))
    return found


def choose(points: Sequence[Measured], axes: Sequence[Axis]) -> Choice:
    """Return the point with the least fitted loss (the least measured one if nothing can be fitted), and its gap.

    The gap is the fitted loss of the chosen point above the optimum's, plus what the error of the fitted optimum adds
    to it on average. Raises ValueError without a finite loss.
    """
    kept = [i for i, point in enumerate(points) if math.isfinite(point.loss)]
    if not kept:
        raise ValueError("no point has a finite loss")
    x, y = np.array([points[i].at for i in kept]).reshape(len(kept), -1), np.array([points[i].loss for i in kept])
    least = int(np.argmin(y))
    if not axes:
        return Choice(kept[least], 0.0 if len(kept) == 1 else regret(float(y[least]), [*np.delete(y, least)]))
    edge = _edges(x, y, axes)
    parabola = fit(x, y)
    if parabola is None:
        return Choice(kept[least], math.inf, edge, None if edge else points_needed(axes))
    fitted = np.where(parabola.window, parabola.above(x), np.inf)
    chosen = int(np.argmin(fitted))
    gap = float(fitted[chosen]) + parabola.uncertainty
    if y[chosen] - y[least] > 4 * NOISE:  # the parabola is not what was measured
        chosen, gap = least, max(gap, float(y[chosen] - y[least]))
    return Choice(kept[chosen], gap, edge, points_needed(axes) if gap > FAR / 10 else None)


def _edges(x: Array, y: Array, axes: Sequence[Axis]) -> tuple[str, ...]:
    """Return the ranges at whose end the best point lies, unless a point beyond it, otherwise equal, is certainly
    worse: then the optimum is bracketed, and lies inside."""
    least = int(np.argmin(y))
    best, worse = x[least], y > y[least] + CERTAIN
    found = []
    for i, axis in enumerate(axes):
        side = 1.0 if best[i] >= 1 - REACH else -1.0 if best[i] <= REACH else 0.0
        others = np.delete(np.abs(x - best), i, axis=1).max(axis=1, initial=0.0) <= SAME
        if side and not (worse & others & (side * (x[:, i] - best[i]) > SAME)).any():
            found.append(axis.name)
    return tuple(found)


def points_needed(axes: Sequence[Axis]) -> int:
    """Return the drawn points that locate the optimum: one per factor `DENSITY` of a log range, eight over a linear
    one; the product over two ranges and more."""
    widths = [math.log(a.high / a.low) / math.log(DENSITY) if a.log else 8.0 for a in axes]
    return max(5, math.ceil(math.prod(max(3.0, w) for w in widths)))


def regret(chosen: float, others: Sequence[float], noise: float = NOISE) -> float:
    """Return the largest expected loss of a choice among settings that lie on no common range, each measured once with
    `noise`: E[(chosen - other)+] of their true losses."""
    sd, found = math.sqrt(2) * noise, 0.0
    for other in others:
        if math.isfinite(other):
            d = max(0.0, other - chosen) / sd
            found = max(
                found, sd * (math.exp(-d * d / 2) / math.sqrt(2 * math.pi) - d * math.erfc(d / math.sqrt(2)) / 2)
            )
    return found
