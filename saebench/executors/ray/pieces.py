"""Files in pieces: listed with size and checksum, read at an offset, written under a temporary name and renamed when
complete."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from saebench.runs.durable import sync, temporary_name
from saebench.runs.files import file_sum

PIECE = 4 << 20
"""Bytes of a file per message."""


def inside(root: Path, name: str) -> Path:
    """Return the path of `name` below `root`. Raises ValueError for one that leads elsewhere."""
    parts = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts:
        raise ValueError(f"{name!r}: not a name below {root}")
    return root.joinpath(*parts)


def list_files(root: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return {name, size, crc} of the files in `names` (files and folders below `root`), without temporary ones."""
    found = []
    for path in (inside(root, name) for name in names):
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            name = file.relative_to(root).as_posix()
            if file.is_file() and not any(part.endswith(".tmp") for part in PurePosixPath(name).parts):
                size, crc = file_sum(file)
                found.append({"name": name, "size": size, "crc": crc})
    return found


def read_piece(path: Path, offset: int, size: int = PIECE) -> bytes:
    """Return bytes of a file; b"" at its end and for a missing file."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)
    except FileNotFoundError:
        return b""


class Incoming:
    """A file that arrives in order, under a temporary name beside its place until `finish`."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path, self._aside = path, temporary_name(path)
        self._file = open(self._aside, "x+b")  # noqa: SIM115 - closed by finish or drop
        self.size = 0

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)

    def finish(self, size: int, crc: int) -> bool:
        """Sync the file and rename it to its name; return False, without a file, if it is not the one that was
        listed."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        if file_sum(self._aside) != (size, crc):
            self._aside.unlink(missing_ok=True)
            return False
        self._aside.replace(self._path)
        sync(self._path.parent)
        return True

    def drop(self) -> None:
        self._file.close()
        self._aside.unlink(missing_ok=True)
