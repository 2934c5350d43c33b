"""What the cache tells while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Progress:
    """A moment of a build; told a few times a second at most."""

    stage: Literal["waiting", "verifying", "texts", "loading", "encoding", "comparing"]
    done: int
    """Seconds waited, files verified, distinct texts read, rows encoded or compared."""
    total: int | None
    """Of the same; for texts the cap, which the dataset may not reach."""
    rate: float
    """Per second, since the stage began; 0 where it means nothing."""
    message: str = ""
    """For people, where numbers do not say it."""
    warning: bool = False
    """Whether the message is a warning."""


OnProgress = Callable[[Progress], None]
