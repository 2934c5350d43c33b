"""A curve in one line of block characters."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the curve in at most `width` characters, its lowest value as the lowest block. Of more values than
    characters every character shows the last of its share, so that the newest value is always seen; fewer than two
    finite values make no curve."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2 or width < 1:
        return ""
    count = min(width, len(finite))
    shown = [finite[(i + 1) * len(finite) // count - 1] for i in range(count)]
    low, high = min(finite), max(finite)
    span = high - low or 1.0
    return "".join(_BLOCKS[min(7, int(8 * (value - low) / span))] for value in shown)
