"""The process that measures a sweep's floors beside it (floors.py): started, then awaited for a few seconds. No torch
here; floors that are in the cache start no process."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from saebench.config import DataConfig
from saebench.python_path import python_path
from saebench.runs import files
from saebench.runs.durable import write_json

FORMAT = 1
_FLOORS: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(list[dict[str, Any]])
PATIENCE = 5.0
"""Seconds that a sweep at its end waits for its floors."""
LONGEST = 1800.0
"""Seconds after which the process ends in any case; measured floors are in the cache."""
_left: list[subprocess.Popen[str]] = []
"""Processes that outlived their sweep."""


def start(
    data: DataConfig, cache_dir: Path, cache_key: str, sizes: Iterable[tuple[int, int]], to: Path
) -> subprocess.Popen[str] | None:
    """Start a process that writes the floors of these (k, dict_size) to the file `to` once it has all of them; write
    them at once and return None if the cache has them."""
    wanted = sorted(set(sizes))
    known = [read_cached(cache_file(cache_dir, cache_key, data, k, width)) for k, width in wanted]
    if all(floors is not None for floors in known):
        write_json(to, {"format": FORMAT, "floors": [floor for floors in known for floor in floors or ()]})
        return None
    request = {
        "data": data.model_dump(mode="json"),
        "cache_dir": str(cache_dir),
        "cache_key": cache_key,
        "sizes": wanted,
        "to": str(to),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "saebench.trial.floors"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
        text=True,
        start_new_session=True,  # a Ctrl-C in the terminal is the sweep's: it ends this process
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died: `finish` says why
        child.stdin.write(json.dumps(request))
        child.stdin.close()
    child.stdin = None  # communicate() would flush it
    return child


def _environment() -> dict[str, str]:
    one = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    return {**os.environ, **dict.fromkeys(one, "1"), "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": python_path()}


def finish(child: subprocess.Popen[str], note: Callable[[str], None], patience: float = PATIENCE) -> None:
    """Wait `patience` seconds for the floors; then report what is missing and let the process continue."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        _, errors = child.communicate(timeout=patience)
        if child.returncode:
            note(f"floors: {(errors.strip().splitlines() or ['ended'])[-1]}")
        return
    if child.stderr is not None:
        child.stderr.close()
    _left[:] = [one for one in _left if one.poll() is None] + [child]
    note(
        f"floors (scores without training): still being measured by process {child.pid}; "
        "the next `saebench report` has them"
    )


def stop(child: subprocess.Popen[str]) -> None:
    """End the process; the floors that it has measured are in the cache."""
    child.kill()
    child.communicate()


def end_after(seconds: float) -> None:
    """End this process after this many seconds in any case."""
    timer = threading.Timer(seconds, os._exit, [1])
    timer.daemon = True
    timer.start()


# --- files ------------------------------------------------------------------------------------------------------------


def measured(file: Path) -> set[tuple[int, int]]:
    """Return the (k, dict_size) whose floors are in the file; empty if the file cannot be read."""
    try:
        return {(floor["k"], floor["dict_size"]) for floor in files.read_object(file)["floors"]}
    except (FileNotFoundError, files.DamagedError, TypeError, KeyError):
        return set()


def cache_file(cache_dir: Path, cache_key: str, data: DataConfig, k: int, dict_size: int) -> Path:
    """Return where the floors at (k, dict_size) are kept: CACHE/floors/KEY-DIGEST.json."""
    about = [FORMAT, cache_key, data.num_examples, data.model_dump(mode="json"), k, dict_size]
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
    return cache_dir / "floors" / f"{cache_key}-{digest}.json"


def read_cached(file: Path) -> list[dict[str, Any]] | None:
    """Return the floors in a file of the cache; None if it is missing or damaged."""
    try:
        return files.read(_FLOORS, file)
    except (FileNotFoundError, files.DamagedError):
        return None
