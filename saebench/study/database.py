"""A connection to PostgreSQL that outlives a restart of the server, and the right to write a sweep's journal there.

The right is an advisory lock: it ends with the connection, so a killed scheduler blocks no other. A scheduler that lost
its connection takes the lock again after reconnecting, and is refused if another scheduler has it by then.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from saebench.errors import LockedError, PreflightError, StorageLostError
from saebench.runs.secrets import is_masked, mask

if TYPE_CHECKING:
    from psycopg2.extensions import connection, cursor

T = TypeVar("T")
PASSWORD_FILE = "SAEBENCH_DB_PASSWORD_FILE"
"""Environment variable: a file whose content is the password."""
PATIENCE = 60.0
"""Seconds without the database before the sweep ends, resumable."""
_PAUSE = 0.5
_CONNECT = {
    "connect_timeout": 4,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
"""libpq's parameters: a server that disappears silently is noticed within half a minute."""


class Database:
    """One scheduler's connection to the database of `search.storage`. Not thread-safe."""

    def __init__(
        self,
        uri: str,
        sweep: str,
        *,
        note: Callable[[str], None] = lambda _: None,
        hurried: Callable[[], bool] = lambda: False,
        patience: float = PATIENCE,
    ) -> None:
        """Connect and take the sweep's lock. `note`: gets a line when the connection is lost or back; `hurried`: true
        once the sweep was asked to stop; then nothing is waited for. Raises PreflightError with one line if the
        database cannot be used, LockedError if another scheduler has the sweep."""
        self.sweep, self.shown = sweep, mask(uri)
        self._uri, self._password = _without_mask(uri), _password()
        self._note, self._hurried, self._patience = note, hurried, patience
        self._name = f"saebench {socket.gethostname()[:24]}:{os.getpid()} {secrets.token_hex(4)}"
        self._key = int.from_bytes(hashlib.blake2b(f"saebench/{sweep}".encode(), digest_size=8).digest(), signed=True)
        self._connection: connection | None = None
        try:
            self._connect()
        except self._driver().Error as error:
            raise PreflightError(f"search.storage: {self.shown}: {self._line(error)}") from None

    def transact(self, work: Callable[[cursor], T]) -> T:
        """Return what `work` returns, in one committed transaction. After a lost connection `work` is called again: it
        must find out whether its first call was committed. Raises StorageLostError after the time limit."""
        driver, since, last = self._driver(), time.monotonic(), ""
        while True:
            try:
                found = self._once(work)
            except (driver.OperationalError, driver.InterfaceError) as error:
                if not last:
                    self._note(f"search.storage: {self._line(error)}; waiting for it up to {self._patience:.0f} s")
                last = self._line(error)
                self.close()
                if self._hurried() or time.monotonic() - since >= self._patience:
                    raise StorageLostError(f"search.storage: {self.shown}: {last}") from None
                time.sleep(_PAUSE)
            except driver.Error as error:
                raise StorageLostError(f"search.storage: {self.shown}: {self._line(error)}") from None
            else:
                if last:
                    self._note("search.storage: the database is back")
                return found

    def close(self) -> None:
        """Release the lock and close the connection."""
        if self._connection is not None:
            with contextlib.suppress(self._driver().Error):
                self._connection.close()
        self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _once(self, work: Callable[[cursor], T]) -> T:
        there = self._connection or self._connect()
        with there, there.cursor() as at:
            return work(at)

    def _connect(self) -> connection:
        more: dict[str, Any] = {**_CONNECT, "application_name": self._name}
        if self._password is not None:
            more["password"] = self._password
        there: connection = self._driver().connect(self._uri, **more)
        try:
            with there, there.cursor() as at:
                self._take_lock(at)
        except BaseException:
            there.close()
            raise
        self._connection = there
        return there

    def _take_lock(self, at: cursor) -> None:
        """Take the sweep's advisory lock. A session of this same scheduler that the server still keeps is ended first.
        Raises LockedError if another scheduler has it."""
        for _ in range(20):
            at.execute("SELECT pg_try_advisory_lock(%s)", (self._key,))
            if (at.fetchone() or (False,))[0]:
                return
            at.execute(_HOLDER, (self._key >> 32 & 0xFFFFFFFF, self._key & 0xFFFFFFFF))
            pid, name, since = at.fetchone() or (0, "", "")
            if pid and name != self._name:
                raise LockedError(
                    f"{self.shown}: another scheduler holds the sweep {self.sweep}: {name or 'unknown'}, since {since}"
                )
            at.execute("SELECT pg_terminate_backend(%s)", (pid,))
            time.sleep(0.1)
        raise LockedError(f"{self.shown}: the sweep {self.sweep} is locked by a session that does not end")

    def _line(self, error: Exception) -> str:
        """The error in one line, without secrets."""
        said = " ".join(str(error).split()) or type(error).__name__
        said = mask(said, self._uri)
        return said.replace(self._password, "***") if self._password else said

    @staticmethod
    def _driver() -> Any:
        try:
            import psycopg2
        except ImportError:
            raise PreflightError("search.storage: needs psycopg2: pip install 'saebench[postgres]'") from None
        return psycopg2


_HOLDER = """
SELECT a.pid, a.application_name, date_trunc('second', a.backend_start)::text
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
  AND l.classid::bigint = %s AND l.objid::bigint = %s
  AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""


def _without_mask(uri: str) -> str:
    """Return an address that libpq can use; raise PreflightError for one of another kind of database."""
    uri = re.sub(r"^postgresql\+psycopg2?://", "postgresql://", uri)  # as SQLAlchemy and MLflow have it
    if not re.match(r"postgres(ql)?://", uri):
        raise PreflightError(
            f"search.storage: {mask(uri)}: is not the address of a PostgreSQL, postgresql://user@host:5432/database"
        )
    if not is_masked(uri):
        return uri
    if PASSWORD_FILE not in os.environ and "PGPASSFILE" not in os.environ and "PGPASSWORD" not in os.environ:
        raise PreflightError(f"search.storage: {uri}: its password is not stored; set {PASSWORD_FILE} or PGPASSFILE")
    return uri.replace(":***@", "@")


def _password() -> str | None:
    """Return the password in the file that SAEBENCH_DB_PASSWORD_FILE names; None leaves it to the address or to
    PGPASSFILE."""
    if not (name := os.environ.get(PASSWORD_FILE)):
        return None
    try:
        return Path(name).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"{PASSWORD_FILE}={name}: cannot be read: {error}") from None
