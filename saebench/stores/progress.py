"""Progress reports of the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """The state of a build; reported a few times a second at most."""

    stage: Literal["waiting", "verifying", "texts", "loading", "encoding", "comparing"]
    done: int
    """Seconds waited, files verified, distinct texts read, rows encoded or compared."""
    total: int | None
    """Total of the same; for texts the cap, which the dataset may not reach."""
    rate: float
    """Per second, since the stage began; 0 if it has no meaning."""
    message: str = ""
    """A sentence to show instead of the numbers."""
    warning: bool = False
    """Whether the message is a warning."""


OnProgress = Callable[[Progress], None]
