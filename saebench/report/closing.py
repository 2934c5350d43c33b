"""The last lines of a sweep: the result, the best SAE of every level, and the next commands."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from saebench.report.columns import best_trial, sparsity
from saebench.report.headline import headline, leaders, standing
from saebench.report.table import Row, number_of, plain

if TYPE_CHECKING:
    from saebench.report.document import Report

MOST = 8
"""Most levels that are listed."""


def closing(report: Report) -> list[str]:
    """Return the headline, the verdict, and a line per level with what is undecided there."""
    lines = [f"{headline(report)}.", *([report.verdict] if report.judged else [])]
    best = leaders(report)
    lines += [_line(row, standing(report, row)) for row in best[:MOST]]
    return lines + ([f"and {len(best) - MOST} more levels: saebench best"] if len(best) > MOST else [])


def _line(row: Row, open_: str) -> str:
    half = row["fvu_high"] - row["fvu"]
    interval = f" ± {half:.4f}" if math.isfinite(half) else ""
    of = f"{row['group']}, " if row["group"] else ""
    arm = f"{row['arm']}{f' ({open_})' * bool(open_)}"
    fvu = f"FVU {plain(row['fvu'])}{interval} ({_whose(row['seeds'])})"
    return f"best at {of}{sparsity(row)}: {arm}, {fvu}, trial {best_trial(row)}"


def _whose(seeds: int) -> str:
    """Return whose FVU it is, which may not be that of the named trial."""
    return f"{'mean over ' if seeds > 1 else ''}{number_of(seeds, 'comparing seed')}"
