"""Errors that a user can cause: one clear line each, which the command line prints without a traceback."""

from __future__ import annotations

import errno
import os

_ENVIRONMENT_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EAGAIN,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,
    }
)


class UserError(Exception):
    """Something the user can fix; `str()` is one line per problem."""

    exit_code = 2


class SpecError(UserError):
    """The spec or the command line is wrong; nothing was started."""


class PreflightError(UserError):
    """The spec is valid, but a device, a model, a server or a disk cannot be used; nothing was started."""

    exit_code = 5


class DataError(PreflightError):
    """Texts, encoder or embedding cache cannot be used."""


class LockedError(UserError):
    """Another process works on this sweep."""

    exit_code = 6


class StorageLostError(UserError):
    """The database of search.storage is unreachable for too long; the sweep can be resumed."""

    exit_code = 75


class ExecutorLostError(UserError):
    """The executor (such as a cluster) was lost during a sweep; the sweep can be resumed."""

    exit_code = 75


_NO_MEMORY = ("failed to map segment", "cannot allocate memory", "error return without exception set")
"""Messages of the loader of shared libraries and of extension modules when the address space is full."""
_NO_THREADS = "can't start new thread"


def environment_error_message(error: Exception) -> str | None:
    """Return one line for an error that the program cannot fix (a full or read-only disk, a missing permission, no
    memory, threads, processes or open files left, a deleted working directory), else None: a defect, which needs its
    traceback."""
    try:
        os.getcwd()
    except OSError:
        return "the working directory was deleted: change to another one"
    if isinstance(error, OSError):
        return _os_error_message(error)
    said = str(error)
    if isinstance(error, MemoryError) or any(words in said.lower() for words in _NO_MEMORY):
        return "not enough memory: free some, or raise the limit (ulimit -v)"
    if isinstance(error, RuntimeError) and _NO_THREADS in said:
        return "no thread can be started: end other programs, or raise the limit (ulimit -u)"
    return None


def _os_error_message(error: OSError) -> str | None:
    if error.errno not in _ENVIRONMENT_ERRNOS:
        return None
    if error.errno == errno.EAGAIN:
        return "no process can be started: end other programs, or raise the limit (ulimit -u)"
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
