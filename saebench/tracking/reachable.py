"""Find out within seconds, and without creating anything, whether a tracking address answers."""

from __future__ import annotations

import socket
import sqlite3
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from saebench.errors import PreflightError
from saebench.runs.secrets import mask
from saebench.tracking.address import sqlite_file
from saebench.tracking.mlflow_errors import one_line

ANSWER_WITHIN = 5.0
"""Seconds a tracking server gets for its first answer."""
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_readable(uri: str) -> None:
    """Raise PreflightError within seconds if nothing answers at `uri`; for commands that only read."""
    place, parts = mask(uri), urlsplit(uri)
    scheme = parts.scheme.split("+")[0]
    if (file := sqlite_file(uri)) is not None:
        if not file.is_file():
            raise PreflightError(
                f"tracking {place}: the database no longer exists; if it was moved, give its new address with "
                "--tracking-uri"
            )
    elif scheme in ("http", "https"):
        _check_http(uri, place)
    elif scheme in PORTS:
        try:
            check_address(uri)
        except OSError as error:
            raise PreflightError(
                f"tracking {place}: the server does not answer ({mask(str(error), uri)}); start it, or give "
                "another address with --tracking-uri"
            ) from error
    elif scheme in ("", "file") and not Path(unquote(parts.path)).is_dir():
        raise PreflightError(f"tracking {place}: no such folder; give another address with --tracking-uri")


def check_writable(path: Path) -> None:
    """Raise OSError or sqlite3.Error unless the database can be written, or created if it does not exist."""
    if path.exists():
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=4)) as database:
            try:
                database.execute("BEGIN IMMEDIATE")
                (version,) = database.execute("PRAGMA user_version").fetchone()
                database.execute(f"PRAGMA user_version = {version}")  # BEGIN succeeds on a file that is read-only
                database.rollback()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error):  # another process is writing to it, so it works
                    raise
        return
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_address(uri: str) -> None:
    """Raise OSError if nothing listens at a database's host and port. Sockets of other kinds are not tried."""
    parts = urlsplit(uri)
    if parts.hostname:
        port = parts.port or PORTS[parts.scheme.split("+")[0]]
        socket.create_connection((parts.hostname, port), timeout=min(4.0, ANSWER_WITHIN)).close()


def _check_http(uri: str, place: str) -> None:
    """Raise PreflightError if nothing answers. Any HTTP status counts as an answer, 401 and 404 too: MLflow's client
    reports those."""
    begin = time.monotonic()
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=ANSWER_WITHIN).close()
    except urllib.error.HTTPError:
        return
    except (OSError, ValueError) as error:
        if "CERTIFICATE" in str(error):
            return
        waited = f"{time.monotonic() - begin:.0f} s"
        reason = mask(str(getattr(error, "reason", None) or error), uri)
        raise PreflightError(
            f"tracking {place}: the server does not answer ({reason}; {waited}); start it, or give "
            "another address with --tracking-uri"
        ) from error
    except Exception as error:  # http.client raises its own errors for an invalid address
        raise PreflightError(f"tracking {place}: {one_line(error, uri=uri)}") from error
