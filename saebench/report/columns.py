"""Columns that several tables share, and the formats of a row's sparsity and trial."""

from __future__ import annotations

from saebench.report.table import Column, Row, missing, plus_minus, short_counts


def sparsity(row: Row) -> str:
    """For example k=32."""
    return f"{row['level_name']}={row['level']:g}" if row.get("level_name") else "-"


def trial_name(row: Row) -> str:
    """For example demo/7, as `saebench export` takes it."""
    return f"{row['sweep']}/{row['trial']}" if not missing(row["trial"]) else "-"


def best_trial(row: Row) -> str:
    """For example demo/7, as `saebench export` takes it."""
    return f"{row['sweep']}/{row['best_trial']}"


COUNTS = Column("complete", "c/p/f", short_counts)
GROUP, ARM = Column("group", "data"), Column("arm", "arm")
LEVEL, WIDTH = Column("level", "sparsity", sparsity), Column("dict_size", "latents")
FVU_MEAN = Column("fvu", "FVU ± 95%", plus_minus("fvu", "fvu_high"))
