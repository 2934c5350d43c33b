"""MLflow's errors in one line, and how long it may try before it raises one."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from saebench.errors import PreflightError, UserError
from saebench.runs.secrets import mask

QUIET_ENVIRONMENT = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # of a logged model: it would tear the live view
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
PREFLIGHT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}
"""MLflow's own are 7 retries of up to 120 s each: about four minutes before a wrong address is reported."""
_READING = {**QUIET_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""For a report, which sends many requests at once; variables that the user has set win."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors raised unchanged: the sweep's own message names the full directory."""


@contextmanager
def preflight(uri: str) -> Iterator[None]:
    """Limit MLflow's retries inside the block and turn any error into a one-line PreflightError; restore the
    environment afterwards."""
    with _environment(PREFLIGHT_ENVIRONMENT):
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # a driver, a proxy or a plugin may raise any class
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            raise PreflightError(f"tracking {mask(uri)}: {one_line(error, uri=uri)}") from error


@contextmanager
def reading(uri: str) -> Iterator[None]:
    """Read with few retries, short waits and no progress bars, unless the user's environment sets these; turn any error
    into a one-line PreflightError."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    with _environment({key: value for key, value in _READING.items() if key not in os.environ}):
        try:
            yield
        except (MlflowException, requests.RequestException, SQLAlchemyError, sqlite3.Error, OSError) as error:
            raise PreflightError(f"tracking {mask(uri)}: {one_line(error, uri=uri)}") from error


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


_REWORDED = [
    (r"database is locked", "the database is locked: another process is writing to it; try again when it has finished"),
    (r"database or disk is full", "no room left on the disk that holds the database"),
    (r"table \w+ already exists", "the database is half made: an earlier start was cut off while creating its tables; "
     "remove the file and start again"),
    (r"attempt to write a readonly database", "the database is read-only"),
    (r"disk I/O error", "disk I/O error while reading or writing the database"),
    (r"database disk image is malformed|file is not a database", "the file is damaged or not a database"),
    (r"no such table: (\w+)", "the database has no MLflow tables: it is empty or another program's"),
]  # fmt: skip
"""Errors of SQLite (SQLAlchemy surrounds them with SQL) -> the line that is shown instead."""


def one_line(error: BaseException, limit: int = 300, *, uri: str = "") -> str:
    """Return the message of an exception on one line, without secrets."""
    said = " ".join(mask(str(error), uri).split()) or type(error).__name__
    if "Max retries exceeded" in said:  # the rest repeats urllib3's and MLflow's wrappers
        why = re.search(r"Connection refused|timed out|Name or service not known|No route to host|SSLError", said)
        said = f"the server does not answer ({why[0]})" if why else said
    if schemes := re.search(r"Supported URI schemes are: \[(.*?)\]", said):
        known = [name for name in re.findall(r"'([\w-]+)'", schemes[1]) if name != "file"]
        said = f"MLflow does not support such an address; it supports {', '.join(known)}"
    if isinstance(error, sqlite3.Error) or "sqlite3." in said or "[SQL:" in said:
        words = next((words for pattern, words in _REWORDED if re.search(pattern, said)), None)
        said = words or said.split(" [SQL:")[0]
    return said if len(said) <= limit else f"{said[: limit - 3]}..."


_LASTING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE")
"""Without the bare statuses 404 and 400: a proxy sends those while the server behind it restarts."""


def is_lasting(error: BaseException) -> bool:
    """Return whether the same request would fail again: True if the server rejects it, False for an outage."""
    return getattr(error, "error_code", None) in _LASTING
