"""Optuna's journal in a table of PostgreSQL: a row per record, a transaction per group.

The primary key (sweep, n) is the fence: a scheduler that was taken for dead and continues writes rows whose numbers its
successor has taken, and stops. Optuna's own storage for databases needs seventy times the processor time for a report,
and a restart of the server ends it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.errors import LockedError
from saebench.runs.durable import replacing
from saebench.study.database import Database
from saebench.study.records import Records, is_record

if TYPE_CHECKING:
    from psycopg2.extensions import cursor

_CREATE = """
CREATE TABLE IF NOT EXISTS saebench_journal
    (sweep text NOT NULL, n bigint NOT NULL, record text NOT NULL, PRIMARY KEY (sweep, n))
"""
_CREATING = 7_305_131_884
"""Advisory lock under which the table is created: two that do so at once would disturb each other."""


class TableRecords(Records):
    """The rows of one sweep. Records are in memory until `commit`: a killed process loses them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        rows = database.transact(self._open)
        self._next = len(rows)
        super().__init__(row for row in rows if is_record(row))
        self._write([_opened(database.sweep)])

    def _open(self, at: cursor) -> list[bytes]:
        at.execute("SELECT pg_advisory_xact_lock(%s)", (_CREATING,))
        at.execute("SELECT to_regclass('saebench_journal')")
        if (at.fetchone() or (None,))[0] is None:
            at.execute(_CREATE)
        at.execute("SELECT record FROM saebench_journal WHERE sweep = %s ORDER BY n", (self._database.sweep,))
        return [row.encode() for (row,) in at.fetchall()]

    def _hand_over(self) -> None:
        """Wait for `commit`: a transaction of its own would cost a round trip."""

    def commit(self) -> None:
        if self._unwritten:
            self._write(self._unwritten)
            self._unwritten.clear()

    def close(self) -> None:
        self._database.close()

    def _write(self, lines: Sequence[bytes]) -> None:
        """Add rows in one transaction. If the answer was lost with the connection, the second try finds them. Raises
        LockedError if another scheduler has written rows of these numbers."""
        sweep, first = self._database.sweep, self._next
        rows = [(sweep, first + i, line.decode()) for i, line in enumerate(lines)]

        def insert(at: cursor) -> bool:
            from psycopg2.extras import execute_values

            execute_values(
                at, "INSERT INTO saebench_journal VALUES %s ON CONFLICT DO NOTHING", rows, page_size=len(rows)
            )
            if at.rowcount == len(rows):
                return True
            between = (sweep, first, first + len(rows))
            at.execute("SELECT n, record FROM saebench_journal WHERE sweep = %s AND n >= %s AND n < %s", between)
            return dict(at.fetchall()) == {n: record for _, n, record in rows}

        if not self._database.transact(insert):
            self.close()
            raise LockedError(
                f"{self._database.shown}: another scheduler has taken over the sweep {sweep} meanwhile; this one stops"
            )
        self._next += len(rows)


def copy_to_file(database: Database, path: Path) -> None:
    """Write the sweep's records to `path` as a journal file, which Optuna's dashboard and `saebench report` read."""

    def read(at: cursor) -> list[str]:
        at.execute("SELECT record FROM saebench_journal WHERE sweep = %s ORDER BY n", (database.sweep,))
        return [record for (record,) in at.fetchall()]

    with replacing(path) as new:
        new.file.write("".join(record for record in database.transact(read) if is_record(record.encode())).encode())


def set_rows_aside(database: Database) -> None:
    """Rename the rows of a sweep that cannot be used; the trials are read from their directories again."""
    aside = f"{database.sweep}.damaged-{time.time_ns()}"
    database.transact(
        lambda at: at.execute("UPDATE saebench_journal SET sweep = %s WHERE sweep = %s", (aside, database.sweep))
    )


def _opened(sweep: str) -> bytes:
    """Write a row that names the process that opened the journal; its number is taken, which fences an earlier
    process."""
    who = {
        "sweep": sweep,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": time.time(),
        "of": os.urandom(8).hex(),
    }
    return (json.dumps({"opened": who}) + "\n").encode()
