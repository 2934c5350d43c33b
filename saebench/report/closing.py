"""The last lines of a sweep: what it has found, the best SAE of every level, and where to go from here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from saebench.report.columns import best_trial, sparsity
from saebench.report.headline import headline, leaders
from saebench.report.table import Row, plain

if TYPE_CHECKING:
    from saebench.report.document import Report

MOST = 8
"""Levels that are named."""


def closing(report: Report) -> list[str]:
    """The headline, what the verdict says, and a line per level; the commands are the caller's."""
    lines = [f"{headline(report)}.", *([report.verdict] if report.judged else [])]
    best = leaders(report)
    lines += [_line(row) for row in best[:MOST]]
    return lines + ([f"and {len(best) - MOST} more levels: saebench best"] if len(best) > MOST else [])


def _line(row: Row) -> str:
    half = row["fvu_high"] - row["fvu"]
    interval = f" ± {half:.4f}" if math.isfinite(half) else ""
    of = f"{row['group']}, " if row["group"] else ""
    return f"best at {of}{sparsity(row)}: {row['arm']}, FVU {plain(row['fvu'])}{interval}, trial {best_trial(row)}"
