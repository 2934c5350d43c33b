"""Write files and folders completely or not at all: under a temporary name beside the target, synced, then renamed.

The temporary name cannot be guessed and is opened with O_EXCL and O_NOFOLLOW: a link planted in a shared folder is
never followed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import Any

TEMPORARY = ".*.tmp"
"""Pattern of the temporary names: `.NAME.<8 hexadecimal digits>.tmp`."""


@dataclass
class Replacement:
    """A file under its temporary name."""

    file: BufferedRandom
    """Open for writing and reading; `file.name` is its path."""
    target: Path
    """Path that it gets; may be changed until the block ends, for a name that depends on the content."""


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Replacement]:
    """Yield a new file that takes the place of `path` when the block ends: a reader sees the old file or the new one,
    never a part of it. If the block raises, the new file is removed. `durable`: fsync the file and its folder; without
    it a power cut may lose the file, and writing takes a tenth of the time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    with _removed_on_failure(temporary):
        with open(temporary, "x+b", opener=_open_new) as file:
            new = Replacement(file, path)
            yield new
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(new.target)
    if durable:
        sync(new.target.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `path` when the block ends, with the files in it synced. If the block raises,
    it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    temporary.mkdir()
    with _removed_on_failure(temporary):
        yield temporary
        for inside in temporary.iterdir():
            sync(inside)
        sync(temporary)
        temporary.rename(path)
    sync(path.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace `path` by this text (see `replacing`)."""
    with replacing(path, durable=durable) as new:
        new.file.write(text.encode("utf-8"))


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """`write_text` of indented JSON."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n", durable=durable)


def sync(path: Path) -> None:
    """fsync a file or, where the system can, a folder; nothing if there is neither."""
    if not path.exists() or (path.is_dir() and not hasattr(os, "O_DIRECTORY")):
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_temporary(folder: Path) -> None:
    """Remove what killed writers left in `folder` (not below it). No writer may be alive."""
    for path in folder.glob(TEMPORARY):
        _remove(path)


def temporary_name(path: Path) -> Path:
    """Return a new temporary name beside `path`, for writers that open their files themselves."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _open_new(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


@contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    """Remove the file, whose written part would only fill the disk."""
    try:
        yield
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path) -> None:
    remove: Callable[[Path], None] = shutil.rmtree if path.is_dir() and not path.is_symlink() else Path.unlink
    try:
        remove(path)
    except OSError:  # gone already, or a folder that became read-only: what is left is found by its name
        return
