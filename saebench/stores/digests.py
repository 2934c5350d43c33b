"""The SHA-256 of a file, remembered in the cache by its path, size and times, so that gigabytes are read once."""

from __future__ import annotations

import contextlib
import hashlib
import time
from pathlib import Path

from saebench.runs.durable import write_json
from saebench.runs.files import DamagedError, read_object

_RECENT_NS = 2_000_000_000
"""A file changed less than this long ago may change again without its time stamp moving; its digest is not kept."""


def sha256_of(path: Path, cache_dir: Path) -> str:
    """Return the SHA-256 of the file. Remembered by both times, because copying or unpacking another file over it may
    set mtime, but not ctime."""
    path = path.absolute()
    stat = path.stat()
    known = cache_dir / "digests" / (hashlib.sha256(str(path).encode()).hexdigest()[:24] + ".json")
    times = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
    stamp = {"path": str(path), "bytes": stat.st_size, **times}
    try:
        kept = read_object(known)
        if {key: kept[key] for key in stamp} == stamp:
            return str(kept["sha256"])
    except (FileNotFoundError, DamagedError, KeyError):
        pass
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    recent = abs(time.time_ns() - stat.st_mtime_ns) <= _RECENT_NS  # a clock that was wrong may have set it ahead
    if not recent and cache_dir.is_dir():
        with contextlib.suppress(OSError):  # a cache that can only be read forgets
            write_json(known, {**stamp, "sha256": found})
    return found
