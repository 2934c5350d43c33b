"""Every executor that `run.executor` can name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saebench.executors import Executor
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.local import LocalExecutor
from saebench.executors.ray.executor import RayExecutor
from saebench.sweep_config import RunConfig

EXECUTORS: dict[str, Callable[[RunConfig, Path, str], Executor]] = {
    "local": LocalExecutor,
    "in_process": InProcessExecutor,
    "ray": RayExecutor,
}
"""`run.executor` -> its class: called with the spec's `run`, the cache's folder and "module:function" of the trial."""


def make_executor(run: RunConfig, cache_dir: Path, target: str) -> Executor:
    """Return the executor that `run.executor` names. Raises PreflightError for a device that it cannot use."""
    return EXECUTORS[run.executor](run, cache_dir, target)
