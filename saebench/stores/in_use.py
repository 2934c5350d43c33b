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
            _share(handle)


@contextmanager
def nobody_holds(path: Path) -> Iterator[bool]:
    """Whether no process (this one included) holds the entry; nobody new does while this lasts."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if new:
            os.utime(path, (0, 0))  # who asks this does not use it
        yield _take(handle)
    finally:
        os.close(handle)


# Nothing happens where there is no flock (Windows).


def _share(handle: int) -> None:
    """Lock an open file with others. Waits for who has it alone: it may be about to remove the entry, and without a
    lock the entry would be found and then be gone."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_SH)


def _take(handle: int) -> bool:
    """Whether an open file could be locked alone, without waiting."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
