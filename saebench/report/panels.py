"""What the charts share: their panels, legends and tips."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from saebench.report.columns import sparsity, trial_name
from saebench.report.comparison import FVU, L0
from saebench.report.table import Row, percentage, plain, trial_counts

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report

PANELS = 12
"""Most panels of one chart."""


def grouped(rows: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Rows of the same data and budget."""
    for group, mine in rows.groupby("group", sort=False):
        yield str(group), mine


def legend(arms: Sequence[str], widths: Sequence[float]) -> list[tuple[str, int, int]]:
    """Return the legend: arms by colour and marker, widths by dash if there are several."""
    entries = [(arm, i, 0) for i, arm in enumerate(arms)]
    return entries + ([(f"n={width:g}", -1, i) for i, width in enumerate(widths)] if len(widths) > 1 else [])


def stratum_tip(row: Row) -> str:
    """Return the tip of a stratum's best point."""
    half = row["fvu_high"] - row["fvu"]
    interval = f" ± {half:.4f}" if math.isfinite(half) else ""
    return (
        f"{row['arm']}, {sparsity(row)}, n={plain(row['dict_size'])}\n"
        f"FVU {plain(row['fvu'])}{interval} ({row['seeds']} seeds), L0 {plain(row['l0'])}\n"
        f"dead {percentage(row['dead_fraction'])}\n{trial_counts(row)}"
    )


def trial_tip(row: Row) -> str:
    """Return the tip of a trial's mark or line."""
    return (
        f"{trial_name(row)} {row['state']}: {row['arm']}\n"
        f"{sparsity(row)}, n={plain(row['dict_size'])}, seed {plain(row['seed'])}, lr {plain(row['lr'])}\n"
        f"FVU {plain(row[FVU])}, L0 {plain(row[L0])}"
    )


def by_panel(report: Report, trials: DataFrame) -> Iterator[tuple[str, DataFrame]]:
    """Trials by data, sparsity and width, arms together; k and target_l0 of one value are one panel."""
    names = trials["level_name"].where(~trials["level_name"].isin(["k", "target_l0"]), "k")
    kinds = trials.groupby(["group", "dict_size", names, "level"], dropna=False)
    for shown, ((group, width, name, level), mine) in enumerate(kinds):
        if shown == PANELS:
            report.record.note(f"plots show the first {PANELS} of {kinds.ngroups} combinations of sparsity and width")
            return
        title = f"{name}={level:g}, n={plain(width)}" if name else f"n={plain(width)}"
        yield (f"{group}: {title}" if group else title), mine
