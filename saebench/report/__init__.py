"""Reports on sweeps: tables, statistics, plots and a verdict, from MLflow through pandas. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from saebench.report.document import TABLES, Report, load

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["TABLES", "Report", "load", "trials"]


def trials(*sweeps: str | Path, runs_dir: str | Path | None = None, tracking_uri: str | None = None) -> DataFrame:
    """A tidy DataFrame, a row per trial of these sweeps (names or directories; none: the newest).

    Columns: sweep, trial, state, reason, type, stratum, point, seed, the parameters (k, dict_size, lr, ...), the last
    value of every metric under its key ("eval/fvu"), failure, attempt, duration_s, run_id, verdict. Raises UserError
    for an unknown sweep (the message lists the existing ones), PreflightError for a server that does not answer.
    """
    return load(*sweeps, runs_dir=runs_dir, tracking_uri=tracking_uri).record.frame
