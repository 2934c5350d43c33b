"""How often a verdict is wrong: sweeps of two arms, simulated with the product's own samplers, refinement, choice and
statistics on the measured response of FVU to the learning rate.

    python experiments/verdict/simulate.py [--sweeps 1000] [--out simulation.csv]

log FVU = least + 0.0706 x^2 near the best learning rate (x = ln lr/lr_best), linear with slope 0.17 far away, and
(cliff) about three times as steep above it; a point's own noise over seeds is 0.2%, a seed's own effect on all points
is shared by the arms and cancels (all measured). The range is a factor of thirty, the optimum drawn per sweep.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from saebench.plan import Plan, make_plan
from saebench.report.statistics import over_strata
from saebench.spec import parse_spec
from saebench.study import refine, samplers
from saebench.study.stratum_search import StratumSearch, Trial

CURVATURE, SLOPE, NOISE = 0.0706, 0.17, 0.002
LOW, HIGH = 1e-3, 3e-2
WIDTH = math.log(HIGH / LOW)
EARLY = 0.03
"""Noise of log FVU at the mark where the median pruner judges, against the final value."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    points: tuple[int, int] = (8, 8)
    """Drawn points of either arm."""
    seeds: int = 5
    """Seeds that compare."""
    shift: float = 1.0
    """Factor between the best learning rates of the arms."""
    worse: float = 0.0
    """log FVU of the second arm above the first, at the best of each."""
    strata: int = 1
    place: str = "inside"
    """Where the optimum lies in the range: inside, or edge (in the last tenth of it or beyond)."""
    prune: tuple[bool, bool] = (False, False)
    """Does the median pruner stop points of either arm?"""
    sampler: str = "qmc"
    response: str = "parabola"
    """parabola, cliff or flat (all points equal in truth)."""


def truth(x: float, response: str) -> float:
    """log FVU above the least one."""
    if response == "flat":
        return 0.0
    if response == "cliff" and x > 0:
        x *= 1.7
    edge = SLOPE / (2 * CURVATURE)
    return CURVATURE * x * x if abs(x) < edge else CURVATURE * edge**2 + SLOPE * (abs(x) - edge)


@cache
def plan_of(points: int, sampler: str, seed: int) -> Plan:
    """The plan of one arm; only its space and its points count."""
    values = {
        "name": "simulation",
        "data": {"model": "m", "dataset": {"path": "p"}, "num_examples": 20_000},
        "sae": [{"type": "topk", "k": 16, "dict_size": 256}],
        "train": {"samples": 20_000, "batch_size": 128, "lr": {"low": LOW, "high": HIGH, "log": True}},
        "search": {"sampler": sampler, "points": points, "seed": seed},
    }
    return make_plan(parse_spec(values), 384)


@dataclass
class Arm:
    """What one stratum of one arm came to."""

    values: np.ndarray
    """log FVU of the chosen point, a value per seed that compares."""
    about: dict[str, object]
    trainings: int
    searched: np.ndarray
    """ln lr/lr_best of the points that the search measured."""
    losses: np.ndarray
    """What it measured: log FVU."""
    chosen: int
    """Index of the chosen one."""


def search(rng: np.random.Generator, plan: Plan, best: float, least: float, case: Case, prune: bool) -> Arm:
    """Draw, prune, refine, choose and compare as `study.Search` does, one trial after the other."""
    stratum = plan.strata[0]
    found = StratumSearch(stratum, None, {}, ())  # type: ignore[arg-type]
    early: list[float] = []

    def log_fvu(lr: float) -> float:
        return least + truth(math.log(lr) - best, case.response) + rng.normal(0, NOISE)

    def train(params: dict[str, object], refinement: tuple[dict[str, object], ...] = ()) -> None:
        number, value = len(found.trials), log_fvu(float(params["lr"]))  # type: ignore[arg-type]
        trial = Trial(number, found, None, 0, params, 0, "complete", refinement=refinement, value=math.exp(value))  # type: ignore[arg-type]
        if prune and not refinement:
            seen = value + rng.normal(0, EARLY)
            if len(early) >= 2 and seen > float(np.median(early)):
                trial.state, trial.value = "pruned", None
            else:
                early.append(seen)
        found.trials[number] = trial
        found.points.add(plan.point_id(stratum, params))  # type: ignore[arg-type]

    for index in range(stratum.points):
        train(samplers.shared_point(plan, stratum, index))  # type: ignore[arg-type]
    while proposed := refine.propose(plan, found):
        for params in proposed:
            train(params, proposed)  # type: ignore[arg-type]
    chosen = refine.choose(plan, found)
    assert chosen is not None
    trial, about = chosen
    values = np.array([log_fvu(float(trial.params["lr"])) for _ in range(case.seeds)])  # type: ignore[arg-type]
    measured = found.candidates()
    places = np.array([math.log(float(t.params["lr"])) - best for t in measured])  # type: ignore[arg-type]
    losses = np.array([math.log(t.value) for t in measured])  # type: ignore[arg-type]
    return Arm(values, about, len(found.trials) + case.seeds, places, losses, measured.index(trial))


def verdict(arms: list[tuple[Arm, Arm]]) -> tuple[str, float]:
    """("first", "second", "undecided" or a reason why nothing is decided, trainings of an arm), as the report says it:
    a t interval over the seeds that compared, widened by the search error."""
    for a, b in arms:
        for arm in (a, b):
            if arm.about["edge"]:
                return "edge", 0.0
            if arm.about["gap"] is None or arm.about["needed"] is not None:
                return "few", 0.0
    found = over_strata(np.stack([a.values - b.values for a, b in arms], axis=1))
    error = float(np.mean([max(a.about["gap"], b.about["gap"]) for a, b in arms]))  # type: ignore[type-var]
    low, high = float(found.low) - error, float(found.high) + error
    return ("first" if high < 0 else "second" if low > 0 else "undecided"), error


def sweep(case: Case, seed: int) -> tuple[str, float, float]:
    """One sweep: verdict, trainings per arm and stratum, search error."""
    rng = np.random.default_rng([seed, 20261126])
    spread = math.log(case.shift)
    arms, trainings = [], 0
    for _ in range(case.strata):
        share = rng.uniform(0.25, 0.75) if case.place == "inside" else rng.uniform(0.9, 1.1)
        best = math.log(LOW) + share * WIDTH - spread / 2
        a = search(rng, plan_of(case.points[0], case.sampler, seed), best, 0.0, case, case.prune[0])
        b = search(rng, plan_of(case.points[1], case.sampler, seed), best + spread, case.worse, case, case.prune[1])
        arms.append((a, b))
        trainings += a.trainings
    said, error = verdict(arms)
    return said, trainings / case.strata, error


def row(case: Case, sweeps: int) -> dict[str, object]:
    """Shares in percent over `sweeps` sweeps."""
    found = [sweep(case, seed) for seed in range(sweeps)]
    said = [verdict for verdict, _, _ in found]

    def share(test: Callable[[str], bool]) -> float:
        return round(100 * sum(map(test, said)) / sweeps, 1)

    return {
        "points": f"{case.points[0]}/{case.points[1]}",
        "seeds": case.seeds,
        "shift": case.shift,
        "worse_percent": round(100 * case.worse, 2),
        "strata": case.strata,
        "optimum": case.place,
        "pruned": "/".join("yes" if p else "no" for p in case.prune),
        "sampler": case.sampler,
        "response": case.response,
        "decided": share(lambda s: s in ("first", "second")),
        "right": share(lambda s: s == "first"),
        "edge": share(lambda s: s == "edge"),
        "few": share(lambda s: s == "few"),
        "trainings": round(float(np.mean([t for _, t, _ in found])), 1),
        "search_error_percent": round(100 * float(np.median([e for _, _, e in found])), 3),
    }


def cases() -> list[Case]:
    """The rows of the table."""
    found = []
    for points in (4, 8):
        for seeds in (3, 5):
            for shift, worse in ((1.0, 0.0), (1.4, 0.0), (2.0, 0.0), (1.4, 0.005), (1.4, 0.01)):
                found.append(Case((points, points), seeds, shift, worse))
    for shift in (1.0, 1.4, 2.0):
        found += [
            Case((8, 8), 5, shift, strata=3),
            Case((4, 4), 3, shift, strata=3),
            Case((8, 8), 5, shift, prune=(True, True)),
            Case((8, 8), 3, shift, prune=(True, False)),
            Case((8, 4), 5, shift),
            Case((8, 8), 5, shift, place="edge"),
            Case((4, 4), 5, shift, place="edge"),
            Case((8, 8), 5, shift, sampler="random"),
            Case((8, 8), 5, shift, response="cliff"),
            Case((4, 4), 5, shift, response="cliff"),
        ]
    found += [Case((8, 8), 5, response="flat"), Case((8, 8), 5, response="flat", prune=(True, False))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "simulation.csv")
    given = parser.parse_args()
    begun, rows = time.process_time(), []
    for case in cases():
        rows.append(row(case, given.sweeps))
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
        with given.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    print(f"{time.process_time() - begun:.0f} s of processor time", file=sys.stderr)


if __name__ == "__main__":
    main()
