"""Locks on the entries of the cache that are in use, so that `cache gc` does not remove them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Hold:
    """A shared lock on the file that records when an entry was last used: while it is held, `cache gc` does not remove
    the entry. Released when this object or the process ends. On a file system without locks it does nothing."""

    def __init__(self, path: Path) -> None:
        with suppress(OSError):
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            weakref.finalize(self, os.close, handle)
            os.utime(path)
            _share(handle)


@contextmanager
def nobody_holds(path: Path) -> Iterator[bool]:
    """Yield whether no process (this one included) holds the entry; no other can until the block ends."""
    new = not path.exists()
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        if new:
            os.utime(path, (0, 0))  # asking is not using
        yield _take(handle)
    finally:
        os.close(handle)


# Does nothing without flock (Windows).


def _share(handle: int) -> None:
    """Lock an open file together with others. Waits for an exclusive lock to end: its holder may be removing the entry,
    which would otherwise be found and then be missing."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_SH)


def _take(handle: int) -> bool:
    """Lock an open file exclusively, without waiting; return whether that worked."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
