"""The worker: runs a trial's target, records its events, and classifies how it ended.

`python -m saebench.worker zygote FD` (zygote.py) imports torch and the target's module once, never touches CUDA, and
forks a fresh process (process.py) for every request; `python -m saebench.worker once FD` is that process if fork is
unavailable. Neither ever imports the caller's main module. FD is a socket whose other end the executor holds: it
carries requests, events and verdicts, and its end of file means that the scheduler died.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import re
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from saebench.config import TrialConfig
from saebench.errors import UserError
from saebench.runs.events import Event, EventLog, FailureKind, Verdict
from saebench.runs.files import file_sum
from saebench.runs.paths import TrialPaths

VERDICT_WAIT = 30.0
"""Seconds a worker waits for a verdict before it continues without one."""
GRACE = 60.0
"""Seconds that a worker has to write a checkpoint and exit once the scheduler has died."""


@dataclass(frozen=True)
class Request:
    """The request that a worker process is started with."""

    number: int
    attempt: int
    config: dict[str, Any]
    """A TrialConfig as JSON."""
    root: str
    """The trial's directory."""
    cache_dir: str
    target: str
    """module:function"""
    device: str
    """As torch calls it: cpu | cuda:0 | mps."""
    threads: int
    memory_fraction: float | None
    environment: dict[str, str]
    """Set before the target starts."""
    sys_path: list[str]
    verdict_wait: float = VERDICT_WAIT
    grace: float = GRACE
    fenced: bool = False
    """Stop as soon as `TrialPaths.fence` names a newer attempt."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Request:
        return cls(**json.loads(text))


class Target(Protocol):
    """The function that a worker runs: `saebench.trial.run.run_trial`, or a toy in tests and benchmarks."""

    def __call__(
        self,
        config: TrialConfig,
        paths: TrialPaths,
        device: str,
        report: Callable[[Event], Verdict],
        *,
        cache_dir: Path,
        attempt: int,
        pending: Callable[[], Verdict],
    ) -> None: ...


class Line(Protocol):
    """A worker's connection to the scheduler: a socket, or a queue in the in-process executor."""

    def send(self, event: Event) -> None:
        """Send an event; ignored if the scheduler has died."""
        ...

    def wait(self, samples: int) -> Verdict:
        """Return the verdict on the `eval` event at `samples`."""
        ...

    def pending(self) -> Verdict:
        """Return the scheduler's current request: PRUNE and LEAVE must be followed at the next step."""
        ...


def resolve(target: str) -> Target:
    """Return the function that "module:function" names. Raises UserError if it does not exist."""
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name, None)
    if not callable(function):
        raise UserError(f"{target}: no such function in {module}")
    return function  # type: ignore[no-any-return]


def work(request: Request, line: Line) -> bool:
    """Run the target in this process, record and send its events; return False after a `failed` event."""
    config, paths = TrialConfig.model_validate(request.config), TrialPaths(Path(request.root))
    log = EventLog(paths.events)
    fence = Fence(paths, request.attempt) if request.fenced else None
    samples = 0

    def report(event: Event) -> Verdict:
        nonlocal samples
        samples = event.samples
        if fence is not None:
            fence.check()
        event = replace(event, attempt=request.attempt)
        if event.type == "done":
            event = replace(event, info={**event.info, "files": finished_files(paths)})
        log.append(event)
        line.send(event)
        return line.wait(event.samples) if event.type == "eval" else pending()

    def pending() -> Verdict:
        asked = line.pending()
        if fence is not None and (asked is not Verdict.GO or fence.is_due()):
            fence.check()
        return asked

    try:
        run = resolve(request.target)
        cache_dir = Path(request.cache_dir)
        run(config, paths, request.device, report, cache_dir=cache_dir, attempt=request.attempt, pending=pending)
    except Exception as error:  # whatever the target raises ends only this trial
        traceback.print_exc()
        failed = replace(failure(error, samples), attempt=request.attempt)
        with contextlib.suppress(OSError):  # a full disk may be what ended it
            log.append(failed)
        line.send(failed)
        return False
    finally:
        with contextlib.suppress(OSError):
            log.close()
    return True


class FencedError(BaseException):
    """A newer attempt of the trial has started; not an Exception, so that no failure is recorded."""


class Fence:
    """Checks for a newer attempt before every event, and once a second between them, so that an attempt that was cut
    off writes neither record nor checkpoint beside its successor."""

    SECONDS = 1.0

    def __init__(self, paths: TrialPaths, attempt: int) -> None:
        self._path, self._attempt, self._looked = paths.fence, attempt, time.monotonic()

    def is_due(self) -> bool:
        return time.monotonic() - self._looked > self.SECONDS

    def check(self) -> None:
        """Raises FencedError."""
        self._looked = time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # no fence: no newer attempt can have started
            if int(self._path.read_text("utf-8")) > self._attempt:
                raise FencedError(f"attempt {self._attempt}: stops, since a newer attempt of this trial has begun")


def finished_files(paths: TrialPaths) -> dict[str, tuple[int, int]]:
    """Return size and crc32 of the files of a complete trial besides its events, by name in its directory, so that a
    later start notices a lost or changed file."""
    files = [paths.evaluation, *sorted(paths.sae.glob("[!.]*"))] if paths.sae.is_dir() else [paths.evaluation]
    return {path.relative_to(paths.root).as_posix(): file_sum(path) for path in files if path.is_file()}


def failure(error: BaseException, samples: int) -> Event:
    """Return the `failed` event for an exception."""
    info = {
        "kind": classify(error),
        "message": one_line(error),
        "traceback": "".join(traceback.format_exception(error)),
    }
    return Event("failed", samples, info=info)


_CUDA_MEMORY = (
    "CUDA out of memory",
    "CUDA error: out of memory",  # of the driver, if not even a context fits
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
    "Triton Error [CUDA]: out of memory",
    "MPS backend out of memory",
)
_NO_CUDA = ("Torch not compiled with CUDA", "Found no NVIDIA driver", "NVIDIA driver on your system is too old")
"""Errors of torch on this machine: no trial could run on any GPU here."""
_NO_SPACE = re.compile(r"os error (28|122)\b|No space left on device|Disk quota exceeded|disk is full")
"""Messages of errors that are not an OSError, such as safetensors'."""
_HOST_MEMORY = ("can't allocate memory", "Cannot allocate memory")


def classify(error: BaseException) -> FailureKind:
    """Return the kind of failure of an exception or of its cause; torch is not imported to recognise its errors."""
    for one in _causes(error):
        names = {base.__name__ for base in type(one).__mro__}
        text = str(one)
        if "OutOfMemoryError" in names or any(mark in text for mark in _CUDA_MEMORY):
            return "cuda_oom"
        if getattr(one, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE.search(text):
            return "no_space"
        if isinstance(one, MemoryError) or any(mark in text for mark in _HOST_MEMORY):
            return "host_oom"
        if "CollapsedError" in names:
            return "collapsed"
        if isinstance(one, FloatingPointError):
            return "diverged"
        if isinstance(one, UserError | ImportError | SyntaxError) or {"ValidationError", "ValueError"} <= names:
            return "user_error"
        if any(mark in text for mark in _NO_CUDA):
            return "user_error"
    return "crash"


def _causes(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def one_line(error: BaseException) -> str:
    """Return the first line of an exception, preceded by its class unless it is a UserError."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if isinstance(error, UserError) and first:
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
