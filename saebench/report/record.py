"""What a report covers: the trials of one or several sweeps, and notes on what could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from saebench.metrics import METRICS
from saebench.report.sources import Source

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass
class Record:
    """The trials of one or several sweeps that a report covers, and notes on what could not be read."""

    frame: DataFrame
    sources: tuple[Source, ...] = ()
    notes: list[str] = field(default_factory=list)
    """One line each: unfinished sweeps, runs that could not be interpreted, missing files."""
    places: dict[str, str] = field(default_factory=dict)
    """Run id -> artifact URI."""
    descriptions: dict[str, str] = field(default_factory=dict)
    """Sweep -> the description in its spec."""
    unfinished: set[str] = field(default_factory=set)
    """Unfinished sweeps: no verdict is reached on them."""
    local: set[str] = field(default_factory=set)
    """Sweeps read from their directory, because MLflow has deleted their record."""

    @property
    def primary(self) -> list[str]:
        """Return the known metrics of `eval.primary`, fvu if there are none."""
        found = self.sources[0].eval("primary") if self.sources else None
        names = [name for name in found if name in METRICS] if isinstance(found, list) else []
        return names or ["fvu"]

    @property
    def margin(self) -> float:
        """Return `eval.margin`, the difference below which two arms count as equivalent."""
        found = self.sources[0].eval("margin") if self.sources else None
        return float(found) if isinstance(found, int | float) and found >= 0 else 0.005

    @property
    def objective(self) -> str:
        return self.sources[0].search("objective", "eval/fvu") if self.sources else "eval/fvu"

    @property
    def maximize(self) -> bool:
        return bool(self.sources) and self.sources[0].search("direction", "minimize") == "maximize"

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)
