"""Objects with a thread of their own, while the process forks (as a `DataLoader` with workers does).

A child has only the thread that forked. Without a halt it would inherit locks that nobody lets go of and work that is
half done.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Protocol


class ForkAware(Protocol):
    """What is told of a fork, from the thread that forks."""

    def before_fork(self) -> None:
        """Finish what is being done in the background and take the lock."""

    def after_fork_in_parent(self) -> None:
        """The fork is over, here the parent: let go of the lock."""

    def after_fork_in_child(self) -> None:
        """The fork is over, here the child: there is no background."""


_known: weakref.WeakSet[ForkAware] = weakref.WeakSet()
_stopped: list[ForkAware] = []
_forking = threading.RLock()


def add(one: ForkAware) -> None:
    """OnProgress it of forks from now on."""
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
