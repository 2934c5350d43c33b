"""Waiting for what happens in another thread or process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

SOON = 60.0
"""Seconds within which a test expects what must not take minutes, on a machine that is busy or stands still a while."""
T = TypeVar("T")


def wait_for(condition: Callable[[], T], seconds: float = SOON) -> T:
    """Return what `condition` returns once it is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not true after {seconds:g} s"
        time.sleep(0.01)
    return found
