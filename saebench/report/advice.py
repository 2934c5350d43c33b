"""Advice on k and width, from the curves along sparsity.

The rule for k rests on the stability of latents across seeds: on synthetic embeddings with a known number of active
features it has its maximum there, within a factor of 1.5, where FVU keeps falling and c_dec has no minimum at all
(experiments/known_truth). So a level is advised if stability has a maximum inside the range for every arm and width
with three levels and two seeds, and if they agree; otherwise there is no advice. c_dec, FVU, probing and dead latents
are shown as further evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from saebench.report.points import FINAL

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.table import Row

ALONG = {"stability": "stability across seeds", "c_dec": "c_dec", "fvu": "FVU", "probing_auc_k5": "probing AUC k=5"}
"""Metrics that are shown along sparsity, with their names."""
FEWEST = 3
"""Levels that a curve needs."""
AGREE = 2.1
"""Curves whose optima differ by more than this factor do not agree."""
NOISE = 0.005
"""Least difference of stability that counts; more if pairs of seeds differ by more."""
DEAD, ALIVE = 0.25, 0.10
"""Share of dead latents above which a width is too large, and below which a width suffices."""


@dataclass(frozen=True)
class Point:
    """One level of a curve: means over the seeds of the chosen point."""

    level: float
    l0: float
    seeds: int
    dead: float
    values: Mapping[str, float]
    """Metric of ALONG -> mean; absent if it was not measured."""
    spread: float = 0.0
    """Half of the range of stability over pairs of seeds."""
    floor: float = math.nan
    """c_dec of random rows."""


@dataclass(frozen=True)
class Curve:
    """One arm at one width, by level."""

    arm: str
    level_name: str
    width: float
    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.width:g} latents"

    def of(self, metric: str) -> list[tuple[Point, float]]:
        """Return the points that have a metric, with its value."""
        there = [(point, point.values.get(metric, math.nan)) for point in self.points]
        return [(point, value) for point, value in there if math.isfinite(value)]


@dataclass(frozen=True)
class Peak:
    """The maximum of the stability of a curve."""

    curve: Curve
    low: float
    """Range of L0 in which the stability equals its maximum up to noise."""
    high: float
    at: float
    side: str
    """"inside" the range of levels, or at its "lowest" or "highest" one."""


@dataclass(frozen=True)
class Advice:
    """The advice: lines to print, and the recommended ranges."""

    lines: tuple[str, ...]
    l0: tuple[float, float] | None = None
    """Recommended range of L0."""
    widths_to_drop: tuple[float, ...] = ()
    extend: str = ""
    """"lower" or "higher" levels should be tried, because the optimum is not inside the range."""
    silent: tuple[str, ...] = field(default_factory=tuple)
    """Why there is no advice on k; empty if there is some."""


def curves(chosen: DataFrame, stability: Sequence[Row]) -> list[Curve]:
    """Return the curves of all arms but controls, from the chosen trials and the rows of the table of stability."""
    if "control" in chosen.columns:
        chosen = chosen[chosen["control"].isna() | chosen["control"].isin(["", "None", "null"])]
    stable = {(r["group"], r["arm"], r["level"], r["dict_size"]): r for r in stability if r.get("best")}
    found = []
    for (group, arm, name, width), mine in chosen.groupby(["group", "arm", "level_name", "dict_size"], sort=False):
        points = []
        for level in sorted(mine["level"].unique()):
            points.append(
                _point(float(level), mine[mine["level"] == level], stable.get((group, arm, level, width), {}))
            )
        label = f"{arm} ({group})" if group else str(arm)
        found.append(Curve(label, str(name), float(mine["dict_size"].iloc[0]), tuple(points)))
    return found


def _point(level: float, trials: DataFrame, stable: Row) -> Point:
    def mean(name: str) -> float:
        key = f"{FINAL}{name}"
        return float(trials[key].astype(float).mean()) if key in trials.columns else math.nan

    values = {name: mean(name) for name in ALONG if name != "stability"}
    values["stability"] = float(stable.get("cosine", math.nan))
    spread = (float(stable["cosine_highest"]) - float(stable["cosine_lowest"])) / 2 if stable else 0.0
    return Point(level, mean("l0"), len(trials), mean("dead_fraction"), values, spread, mean("c_dec_floor"))


def peak(curve: Curve) -> Peak | None:
    """Return the maximum of a curve's stability; None with fewer than FEWEST levels, or if it is flat."""
    there = curve.of("stability")
    if len(there) < FEWEST:
        return None
    noise = max(NOISE, float(np.mean([point.spread for point, _ in there])))
    best = max(value for _, value in there)
    near = [i for i, (_, value) in enumerate(there) if value >= best - noise]
    if len(near) == len(there):
        return None
    top = max(range(len(there)), key=lambda i: there[i][1])
    side = "lowest" if near[0] == 0 else "highest" if near[-1] == len(there) - 1 else "inside"
    return Peak(curve, there[near[0]][0].l0, there[near[-1]][0].l0, there[top][0].l0, side)


def advise(found: Sequence[Curve]) -> Advice:
    """Return the advice that the curves give together."""
    lines: list[str] = []
    silent: list[str] = []
    peaks: list[Peak] = []
    for curve in found:
        if len(curve.points) == 1:
            silent.append(f"{curve.name}: one level of {curve.level_name or 'sparsity'}, so there is no curve along it")
        elif all(point.dead > 0.99 for point in curve.points):
            silent.append(f"{curve.name}: all latents are dead")
        elif (one := peak(curve)) is None:
            silent.append(f"{curve.name}: {_why_none(curve)}")
        else:
            peaks.append(one)
    l0, extend = _together(peaks, lines, silent)
    lines += [text for curve in found for text in _beside(curve, l0)]
    drop = _widths(found, lines)
    return Advice(tuple(lines), l0, tuple(drop), extend, tuple(dict.fromkeys(silent)) if l0 is None else ())


def _why_none(curve: Curve) -> str:
    there = curve.of("stability")
    if len(there) >= FEWEST:
        return "stability does not differ between the levels beyond noise"
    if any(point.seeds < 2 for point in curve.points):
        return "stability needs two seeds that measure the same point"
    return f"stability is known at {len(there)} of {len(curve.points)} levels; {FEWEST} make a curve"


def _together(peaks: Sequence[Peak], lines: list[str], silent: list[str]) -> tuple[tuple[float, float] | None, str]:
    inside = [p for p in peaks if p.side == "inside"]
    for p in peaks:
        if p.side != "inside":
            silent.append(
                f"{p.curve.name}: stability is largest at the {p.side} level (L0 {p.at:.3g}): no optimum inside"
            )
    if not inside:
        sides = {p.side for p in peaks}
        return None, {"lowest": "lower", "highest": "higher"}[sides.pop()] if len(sides) == 1 else ""
    at = [p.at for p in inside]
    if max(at) > AGREE * min(at):
        shown = ", ".join(f"{p.curve.name}: {p.at:.3g}" for p in inside)
        silent.append(f"the arms do not agree on the L0 of the most stable latents ({shown})")
        return None, ""
    for p in inside:
        values = ", ".join(f"{value:.3f} at L0 {point.l0:.3g}" for point, value in p.curve.of("stability"))
        lines.append(f"{p.curve.name}: latents agree best across seeds at L0 {p.at:.3g} ({values})")
    middle = math.exp(float(np.mean(np.log(at))))
    lines.insert(0, f"L0 of about {middle:.2g}: there the latents of {len(inside)} of {len(peaks)} curves are the most "
                    "stable across seeds, which, where the features are known, is where most are found")  # fmt: skip
    return (middle / 1.5, middle * 1.5), ""


def _beside(curve: Curve, l0: tuple[float, float] | None) -> list[str]:
    """Return remarks of c_dec and FVU on an advised range; none without one."""
    if l0 is None:
        return []
    found = []
    c_dec = curve.of("c_dec")
    at = [value for point, value in c_dec if l0[0] <= point.l0 <= l0[1]]
    below = [(point, value) for point, value in c_dec if point.l0 < l0[0]]
    for point, value in below:
        if at and value > 1.05 * max(at) and value > point.floor:
            found.append(f"{curve.name}: at L0 {point.l0:.3g} latents mix: c_dec {value:.3f} against {max(at):.3f} at "
                         f"the advised L0 and a random floor of {point.floor:.3f}")  # fmt: skip
    above = [(p, v) for p, v in curve.of("fvu") if p.l0 > l0[1]]
    mine = [v for p, v in curve.of("fvu") if l0[0] <= p.l0 <= l0[1]]
    if above and mine:
        point, value = above[0]
        found.append(f"{curve.name}: L0 {point.l0:.3g} would lower FVU by {100 * (1 - value / min(mine)):.0f}%")
    return found


def _widths(found: Sequence[Curve], lines: list[str]) -> list[float]:
    """Return remarks on widths with many dead latents if a narrower one of the same arm has few."""
    drop: dict[float, None] = {}
    for curve in found:
        worst = max((p.dead for p in curve.points if math.isfinite(p.dead)), default=0.0)
        least = min((p.dead for p in curve.points if math.isfinite(p.dead)), default=0.0)
        narrower = [c for c in found if c.arm == curve.arm and c.width < curve.width
                    and all(p.dead <= ALIVE for p in c.points)]  # fmt: skip
        if least > DEAD and narrower:
            suffices = max(c.width for c in narrower)
            lines.append(f"{curve.name}: {100 * worst:.0f}% dead; {suffices:g} latents suffice")
            drop[curve.width] = None
    kept = {c.width for c in found} - set(drop)
    return list(drop) if kept else []
