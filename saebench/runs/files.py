"""Read the files of a sweep's directory: typed, bounded in size and depth, compared with the checksum in them.

A sweep's directory may come from another user, a failed disk or an incomplete copy. Whatever a file contains, reading
it returns a value of the requested type or raises `DamagedError`, one line with the file and the reason.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from saebench.errors import UserError

T = TypeVar("T")
Seconds = Annotated[float, Field(ge=0, le=1e11)]
"""Since the epoch."""
LARGEST = 64 << 20
"""Bytes of a JSON file; the largest that a sweep writes, tracking.json of 50,000 trials, has a tenth of it. (Its depth
is bounded by the parser, to about 200.)"""
_SUM = "crc32"
_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


class DamagedError(UserError):
    """A file of a sweep that is not what the sweep wrote; `str()` is "path: why"."""


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a regular file. Raises FileNotFoundError if it is missing, DamagedError for a folder, a
    pipe, a file that is too large or one that cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise DamagedError(f"{path}: is not a file")
        if found.st_size > largest:
            raise DamagedError(f"{path}: has {found.st_size:,} bytes; at most {largest:,} are read")
        data = os.read(handle, found.st_size)
        while len(data) < found.st_size and (more := os.read(handle, found.st_size - len(data))):
            data += more
        return data
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror or error}") from None
    finally:
        os.close(handle)


def parse(adapter: TypeAdapter[T], data: bytes | str, path: Path) -> T:
    """Return JSON as the adapter's type. Raises DamagedError for text that is not JSON, is nested too deeply, has a
    wrong checksum, or does not match the type."""
    value, _ = _unsealed(data, path)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from None


def _unsealed(data: bytes | str, path: Path) -> tuple[Any, bool]:
    """Return JSON without its sum, and whether it had one. Raises DamagedError."""
    try:
        value = from_json(data)
    except ValueError as error:
        raise DamagedError(f"{path}: is not JSON: {error}") from None
    written = value.pop(_SUM, None) if isinstance(value, dict) else None
    if written is not None and written != _sum(value):
        raise DamagedError(f"{path}: was changed after it was written: its {_SUM} is {_sum(value)}, not {written}")
    return value, written is not None


def check_sum(path: Path, largest: int = LARGEST) -> bool:
    """Return whether a JSON file has a sum, which is right then; a quarter of the time of `read`. Raises
    FileNotFoundError, and DamagedError for what cannot be read, is no JSON or was changed."""
    return _unsealed(read_bytes(path, largest), path)[1]


def read(adapter: TypeAdapter[T], path: Path, largest: int = LARGEST) -> T:
    """Return the JSON file as the adapter's type. Raises FileNotFoundError and DamagedError."""
    return parse(adapter, read_bytes(path, largest), path)


def read_object(path: Path, largest: int = LARGEST) -> dict[str, Any]:
    """Return a JSON object of unknown keys. Raises FileNotFoundError and DamagedError."""
    return read(_OBJECT, path, largest)


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON object with the checksum by which `parse` detects changes."""
    return {**value, _SUM: _sum(value)}


def _sum(value: dict[str, Any]) -> str:
    """Return the checksum of the content, not of the bytes: indentation and the order of keys may differ."""
    return f"{zlib.crc32(_CANONICAL.encode(value).encode()):08x}"


_CANONICAL = json.JSONEncoder(sort_keys=True, default=str, check_circular=False)


_TAIL = f',"{_SUM}":"'
_TAIL_LENGTH = len(_TAIL) + 8 + len('"}')


def seal_line(line: str) -> str:
    """Return a line of JSON (an object with keys) with the sum of its bytes as its last key."""
    line = line.rstrip("\n")
    return f'{line[:-1]}{_TAIL}{zlib.crc32(line.encode()):08x}"}}\n'


def is_intact(line: bytes) -> bool:
    """Return whether the checksum at the end of a line of JSON is correct; True for a line without one."""
    line = line.rstrip(b"\n")
    tail = line[-_TAIL_LENGTH:]
    if not tail.startswith(_TAIL.encode()):
        return True
    return f"{zlib.crc32(line[:-_TAIL_LENGTH] + b'}'):08x}".encode() == tail[len(_TAIL) : -2]


def file_sum(path: Path) -> tuple[int, int]:
    """Return (size, crc32) of a file's content."""
    total, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total, size = zlib.crc32(block, total), size + len(block)
    return size, total
