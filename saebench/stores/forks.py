"""Keep objects with a thread of their own consistent when the process forks (as a `DataLoader` with workers does).

A child has only the thread that forked: without this it would inherit locks that are never released and half-finished
work.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """An object with callbacks around a fork; they run in the thread that forks."""

    def before_fork(self) -> None:
        """Finish the work in the background and acquire the lock."""

    def after_fork_in_parent(self) -> None:
        """Release the lock."""

    def after_fork_in_child(self) -> None:
        """Forget the background thread, which this process does not have, and release the lock."""


_known: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_stopped: list[ForkAware] = []
_forking = threading.RLock()


def add(one: ForkAware) -> None:
    """Notify it of forks from now on."""
    _known.add(one)


def discard(one: ForkAware) -> None:
    _known.discard(one)


def _before() -> None:
    _forking.acquire()
    for one in list(_known):
        one.before_fork()
        _stopped.append(one)


def _in_parent() -> None:
    while _stopped:
        _stopped.pop().after_fork_in_parent()
    _forking.release()


def _in_child() -> None:
    _known.clear()
    while _stopped:
        _stopped.pop().after_fork_in_child()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
