"""Stability across seeds as a metric of the verdict: the share of an arm's latents that other seeds find, too.

A value belongs to two seeds, and pairs that share a seed are not independent. So every seed has its pseudo-value of
the jackknife, S U - (S - 1) U_s, where U is the mean over all pairs of seeds and U_s that over those without seed s:
their mean is U, and their t interval is the jackknife's of a mean over pairs (Arvesen 1969), too wide if anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from saebench.report.compare import pool, searched
from saebench.report.comparison import Comparison, Pair, Stratum
from saebench.report.metric_table import STABILITY
from saebench.report.search_error import Cell, CellSearch
from saebench.report.table import Row

Shares = Mapping[tuple[int, int], float]
"""(seed, seed), the smaller first -> share of latents that both find."""


def pseudo_values(shares: Shares, seeds: Sequence[int]) -> dict[int, float]:
    """Return a value per seed; of two seeds, whose one pair has no error, one value; none if a pair is missing."""
    pairs = list(combinations(sorted(seeds), 2))
    if not pairs or any(pair not in shares for pair in pairs):
        return {}
    whole = sum(shares[pair] for pair in pairs) / len(pairs)
    if len(seeds) < 3:
        return {min(seeds): whole}
    found = {}
    for seed in seeds:
        rest = [shares[pair] for pair in pairs if seed not in pair]
        found[seed] = len(seeds) * whole - (len(seeds) - 1) * sum(rest) / len(rest)
    return found


def in_stability(
    c: Comparison, rows: Sequence[Row], searches: Mapping[Cell, CellSearch], margin: float
) -> Comparison | None:
    """Return the same pair of arms compared by the share of latents that other seeds find; None if it is unknown.

    The seed that searched is left out. It trained every point only once, so the sweep does not know how stability
    changes with the point; the search error is the measured one of search_error.py.
    """
    shares = {(row["group"], row["arm"], row["level"], row["dict_size"]): row["shares"] for row in rows if row["best"]}
    strata = []
    for s in c.strata:
        if s.counterpart is None:  # interpolated: there is no dictionary at that sparsity
            continue
        levels = {s.base: s.level, (c.b if s.base == c.a else c.a): s.counterpart[1]}
        mine = [shares.get((c.group, arm, levels[arm], s.dict_size), {}) for arm in (c.a, c.b)]
        values = pseudo_values(
            {pair: mine[1][pair] - mine[0][pair] for pair in mine[0] if pair in mine[1]}, sorted(s.pairs)
        )
        if values:
            pairs = {seed: Pair(value, s.pairs[seed].l0_gap, {}) for seed, value in values.items()}
            strata.append(Stratum(s.level_name, s.level, s.dict_size, s.base, s.counterpart, s.l0, pairs))
    if not strata:
        return None
    fresh = Comparison(c.a, c.b, c.group, tuple(strata), STABILITY, c.unfinished, margin=margin, left_out=c.left_out)
    return searched(pool(fresh), searches)
