"""Where a sweep's search keeps its journal: a file of the sweep, or the database of `search.storage`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.errors import PreflightError
from saebench.runs.paths import SweepPaths
from saebench.spec import SweepSpec

if TYPE_CHECKING:
    from saebench.study import Search
    from saebench.study.database import Database


class Storage:
    """The journal's place, from preflight to the end of this start."""

    def __init__(self, spec: SweepSpec, paths: SweepPaths) -> None:
        self._uri, self._name, self._paths = spec.search.storage, spec.name, paths
        self._database: Database | None = None

    def open(self, note: Callable[[str], None], hurried: Callable[[], bool]) -> Path | Database:
        """Return the file, or the database, connected and locked. Raises PreflightError if the database cannot be used,
        LockedError if another scheduler has this sweep there."""
        if self._uri is None:
            return self._paths.journal
        from saebench.study.database import Database

        self._database = Database(self._uri, self._name, note=note, hurried=hurried)
        return self._database

    def refuse_foreign(self, search: Search) -> None:
        """Raise PreflightError if the database has this sweep's trials, and this directory has never been used."""
        new = not self._paths.lock.exists() and not self._paths.trials()
        if self._database is not None and new and search.numbers():
            raise PreflightError(
                f"search.storage: {self._database.shown}: has a sweep {self._name} that was started in another "
                "directory; resume it there, or give this one another name"
            )

    def copy(self, search: Search) -> None:
        """Commit the journal and, if it is in a database, write a copy of it as the sweep's file."""
        search.commit()
        if self._database is not None:
            from saebench.study.table import copy_to_file

            copy_to_file(self._database, self._paths.journal)

    def close(self) -> None:
        """Release the lock in the database."""
        if self._database is not None:
            self._database.close()
