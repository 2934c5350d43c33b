"""Durations and times of day in words, the same in `plan`, `sweep` and `status`."""

from __future__ import annotations

import time


def duration(seconds: float) -> str:
    """Return a duration to about two digits: 40 s, 13 min, 2 h 10 min, 3 d 4 h."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


def time_of_day(seconds: float, now: float | None = None) -> str:
    """Return the local time in so many seconds: 03:30, with the weekday if that is not today or the night after, with
    the date if it is more than six days away."""
    now = time.time() if now is None else now
    then = time.localtime(now + seconds)
    if seconds < 18 * 3600 or then[:3] == time.localtime(now)[:3]:
        return time.strftime("%H:%M", then)
    return time.strftime("%a %H:%M" if seconds < 6 * 86400 else "%d %b %H:%M", then)


def time_left(seconds: float, now: float | None = None) -> str:
    """Return for example "about 13 h 20 min left, done around 03:30"."""
    return f"about {duration(seconds)} left, done around {time_of_day(seconds, now)}"
