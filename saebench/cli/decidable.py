"""What `plan` can say beforehand of the verdict: whether there are points, seeds and test texts enough for one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from saebench.metrics import FEWEST_TEXTS
from saebench.parabola import fewest_points
from saebench.plan import Plan, Stratum
from saebench.response import points_needed


def too_few_points(plan: Plan) -> Iterator[str]:
    """Strata whose search cannot locate the best point, by the verdict's own rule: a parabola through the points."""
    counts = Counter(filter(None, (_points(stratum) for stratum in plan.strata)))
    for (ranges, drawn, refine, fewest, needed), strata in counts.items():
        tried = f"{drawn} points" if drawn != 1 else "1 point"
        tried += f" and at most {refine} more around the best one" if refine else ""
        where = "a stratum" if strata == len(plan.strata) else f"{strata} of {len(plan.strata)} strata"
        if drawn + refine < fewest:
            outcome = f"the best setting takes {fewest} or more to locate, so the verdict will decide nothing"
        else:
            outcome = "hardly enough to locate the best setting, so the verdict may decide nothing"
        yield f"{tried} in {where} for {ranges}: {outcome}; set search.points to about {needed}"


def _points(stratum: Stratum) -> tuple[str, int, int, int, int] | None:
    """(ranges, points to draw, to refine, fewest, needed) of a stratum with too few; None for one with enough."""
    ranges = stratum.ranges
    if not ranges or stratum.points + stratum.refine >= points_needed(ranges):
        return None
    names = " and ".join(axis.name for axis in ranges)
    return names, stratum.points, stratum.refine, fewest_points(len(ranges)), points_needed(ranges)


def too_few_seeds(plan: Plan) -> Iterator[str]:
    """Seeds that compare arms: without two, there is no interval."""
    searched = any(stratum.points + stratum.refine > 1 for stratum in plan.strata)
    comparing = len(plan.spec.seeds) - searched
    if len(plan.strata) > 1 and len(plan.spec.seeds) > 1 and comparing < 2:
        yield "two seeds, one of which searches: one seed compares, so no verdict has an interval; use 3 or more"


def too_few_texts(plan: Plan, test: int | None) -> Iterator[str]:
    """Test texts, counted or (None) as many as the spec asks for."""
    data = plan.spec.data
    expected = test if test is not None else round(data.num_examples * data.parts.test)
    if expected < FEWEST_TEXTS:
        about = "" if test is not None else "about "
        yield (
            f"{about}{expected:,} test texts: with fewer than {FEWEST_TEXTS:,} the noise of the texts is large; more "
            "texts (num_examples), or a larger data.holdout.test"
        )
