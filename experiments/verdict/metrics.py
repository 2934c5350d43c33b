"""How often is a verdict wrong in the metrics that nothing was chosen by, and in any metric of a family?

    python experiments/verdict/metrics.py [--sweeps 1000] [--out metrics.csv]

The sweeps of simulate.py (twins: the same least values at the same learning rate); points are chosen by FVU, and other
metrics are judged at the chosen points, with the product's search error (`report/search_error.spread`), interval
(`report/statistics.over_strata`, `p_of`) and Holm's correction. As functions of x = ln lr/lr_best, in a score's units:

correlated     follows FVU: half of its logarithm, with noise that is correlated with FVU's (0.7)
uncorrelated   best elsewhere: SLOPE x, so that whoever chose a larger lr has the higher value; noise of its own
mixed          nine metrics, three of the first kind and six of the second, with slopes of either sign
levels         FVU itself at three levels of sparsity, each judged alone, corrected over the levels
"""

from __future__ import annotations

import argparse
import csv
import math
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from simulate import LOW, NOISE, WIDTH, Arm, Case, plan_of, search, truth

from saebench.report.search_error import spread
from saebench.report.statistics import holm, over_strata, p_of

SLOPE = 0.02
"""A score's change per unit of ln lr: 0.005 within the lr that FVU cannot tell apart."""
MARGIN = 0.005
LEVEL = 0.05


@dataclass(frozen=True)
class Kind:
    """One metric as a function of x, as a loss."""

    follows: float
    """Times log FVU above its least value."""
    slope: float
    noise: float = NOISE


KINDS = {
    "correlated": [Kind(0.5, 0.0)],
    "uncorrelated": [Kind(0.0, SLOPE)],
    "mixed": [*[Kind(f, 0.0) for f in (0.3, 0.5, 1.0)], *[Kind(0.0, s * SLOPE) for s in (-2, -1, -0.5, 0.5, 1, 2)]],
}


def judged(rng: np.random.Generator, kind: Kind, arms: list[Arm], case: Case) -> list[tuple[float, float]]:
    """(difference, p) of every pair of arms in one metric; p with the search error."""

    def measure(x: np.ndarray, fvu: np.ndarray) -> np.ndarray:
        own = np.array([kind.follows * truth(v, case.response) + kind.slope * v for v in x])
        shared = 0.7 * (fvu - fvu.mean()) if kind.follows and len(fvu) > 1 else 0.0
        return np.asarray(own + shared + rng.normal(0, kind.noise, len(x)))

    values, errors = [], []
    for arm in arms:
        at = np.full(case.seeds, arm.searched[arm.chosen])
        values.append(measure(at, arm.values))
        flat = np.array([truth(v, case.response) for v in arm.searched])
        searched = measure(arm.searched, arm.losses - flat)
        gap = arm.about["gap"]
        errors.append(math.inf if gap is None else spread(list(arm.losses), list(searched), arm.chosen, float(gap)))  # type: ignore[arg-type]
    found = []
    for a, b in combinations(range(len(arms)), 2):
        interval = over_strata((values[a] - values[b])[:, None])
        error, half = max(errors[a], errors[b]), float(interval.high - interval.mean)
        found.append((float(interval.mean), p_of(abs(float(interval.mean)) - error, half, case.seeds)))
    return found


def by_level(case: Case, _: list[Kind], levels: int, seed: int) -> tuple[bool, bool]:
    """The same of FVU at so many levels of sparsity, each with an optimum of its own."""
    rng = np.random.default_rng([seed, 16])
    plan, p = plan_of(case.points[0], case.sampler, seed), []
    for _level in range(levels):
        best = math.log(LOW) + rng.uniform(0.25, 0.75) * WIDTH
        a, b = (search(rng, plan, best, 0.0, case, False) for _arm in range(2))
        gaps = [arm.about["gap"] for arm in (a, b)]
        if any(arm.about["edge"] or arm.about["needed"] is not None for arm in (a, b)) or None in gaps:
            p.append(1.0)
            continue
        interval = over_strata((a.values - b.values)[:, None])
        half = float(interval.high - interval.mean)
        p.append(p_of(abs(float(interval.mean)) - max(gaps), half, case.seeds))  # type: ignore[type-var]
    return bool((np.array(p) <= LEVEL).any()), bool((holm(p) <= LEVEL).any())


def sweep(case: Case, kinds: list[Kind], arms: int, seed: int) -> tuple[bool, bool]:
    """(is any metric called different before, is any after Holm's correction over metrics and pairs)?"""
    rng = np.random.default_rng([seed, 15])
    best = math.log(LOW) + rng.uniform(0.25, 0.75) * WIDTH
    plan = plan_of(case.points[0], case.sampler, seed)
    searched = [search(rng, plan, best, 0.0, case, False) for _ in range(arms)]
    if any(arm.about["edge"] or arm.about["needed"] is not None for arm in searched):
        return False, False
    p = np.array([p for kind in kinds for _, p in judged(rng, kind, searched, case)])
    return bool((p <= LEVEL).any()), bool((holm(p) <= LEVEL).any())


def rows(sweeps: int) -> list[dict[str, object]]:
    found = []
    for name, arms in (("levels", 3), ("correlated", 2), ("uncorrelated", 2), ("mixed", 2), ("mixed", 3)):
        for points, seeds in ((4, 3), (4, 5), (8, 3), (8, 5)):
            case = Case((points, points), seeds)
            said = [(by_level if name == "levels" else sweep)(case, KINDS.get(name, []), arms, seed)
                    for seed in range(sweeps)]  # fmt: skip
            single, family = (round(100 * sum(one[i] for one in said) / sweeps, 1) for i in (0, 1))
            found.append(
                {"metrics": name, "arms": 2 if name == "levels" else arms,
                 "tests": 3 if name == "levels" else len(KINDS[name]) * arms * (arms - 1) // 2, "points": points,
                 "seeds": seeds, "any_uncorrected": single, "any_after_holm": family}
            )  # fmt: skip
            print(*found[-1].values(), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "metrics.csv")
    given = parser.parse_args()
    table = rows(given.sweeps)
    with given.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    main()
