"""Errors that a user can cause: one clear line each, which the command line prints without a traceback."""

from __future__ import annotations


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
