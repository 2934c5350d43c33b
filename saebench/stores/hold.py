"""Who reads an entry of the cache, so that `cache gc` leaves it alone."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Hold:
    """A process reads an entry, and `cache gc` leaves it alone: a shared lock on the file that says when it was last
    used. It is let go when this object or the process ends. Where locks or writing are impossible, nothing holds."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, handle)
            os.utime(path)
            _lock(handle, shared=True)


@contextmanager
def nobody_holds(path: Path) -> Iterator[bool]:
    """Whether no process (this one included) holds the entry; nobody new does while this lasts."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(handle, shared=False)
        free = True
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(handle)


def _lock(handle: int, shared: bool) -> None:
    """Lock an open file without waiting; raises BlockingIOError. Nothing happens where there is no flock (Windows)."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
