"""Errors that a user can cause: one clear line each, which the command line prints without a traceback."""

from __future__ import annotations

import errno
import os

_OF_THE_MACHINE = frozenset(
    {
        errno.EACCES,
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
    """Something the user can mend; `str()` is one line per problem."""

    exit_code = 2


class SpecError(UserError):
    """The spec or the command line is wrong; nothing was started."""


class PreflightError(UserError):
    """The spec is fine, the world is not: a device, a model, a server or a disk; nothing was started."""

    exit_code = 5


class DataError(PreflightError):
    """Texts, encoder or embedding cache cannot be used."""


class LockedError(UserError):
    """Another process works on this sweep."""

    exit_code = 6


def environment_error_message(error: OSError) -> str | None:
    """One line for an error that no program can help: a full or read-only disk, a missing permission, too few open
    files, a working directory that was deleted. None for others: those are defects and want their traceback."""
    try:
        os.getcwd()
    except OSError:
        return "the working directory is not there any more: change to another one"
    if error.errno not in _OF_THE_MACHINE:
        return None
    return ": ".join(str(part) for part in (error.filename, error.strerror or error) if part is not None)
