"""The result of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.runs.paths import SweepPaths

if TYPE_CHECKING:
    from pandas import DataFrame

    from saebench.report.document import Report


@dataclass(frozen=True)
class SweepResult:
    """The result of one start of a sweep."""

    name: str
    root: Path
    """Its directory, runs/<name>."""
    exit_code: int
    """0 no trial failed, 3 some trials failed, 4 given up, 75 stopped but resumable, 130 interrupted."""
    reason: str = ""
    """Why it ended before its end."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Trials by state."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Trial -> why it failed."""
    tracking_uri: str = ""
    run_id: str = ""
    """MLflow's id of the parent run."""

    @property
    def ok(self) -> bool:
        """Every trial ended, and none failed."""
        return self.exit_code == 0

    def trial(self, number: int) -> Path:
        """Directory of a trial; its SAE is in `sae` below."""
        return SweepPaths(self.root).trial(number).root

    @cached_property
    def report(self) -> Report:
        """The report of the sweep, read once. Raises UserError if its record cannot be read."""
        from saebench.report import load

        return load(self.root)

    def frame(self) -> DataFrame:
        """A row per trial: `saebench.report.trials` of this sweep."""
        from saebench import report

        return report.trials(self.root)
