from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saebench.executors import Executor
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.local import LocalExecutor
from saebench.executors.spawner import FreshSpawner
from saebench.sweep_config import RunConfig

TWO_SLOTS = RunConfig(devices="cpu", per_device=2)


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalExecutor]:
    """Real processes, forked; warm for all tests together."""
    executor = LocalExecutor(TWO_SLOTS, tmp_path_factory.mktemp("cache"), "toys:play")
    yield executor
    executor.close()


@pytest.fixture
def spawned(tmp_path: Path) -> Iterator[LocalExecutor]:
    """Real processes, each a new interpreter."""
    executor = LocalExecutor(TWO_SLOTS, tmp_path / "cache", "toys:play", FreshSpawner())
    yield executor
    executor.close()


@pytest.fixture
def in_process(tmp_path: Path) -> Iterator[InProcessExecutor]:
    executor = InProcessExecutor(TWO_SLOTS, tmp_path / "cache", "toys:play")
    yield executor
    executor.close()


@pytest.fixture(params=["in_process", "local", "spawned"])
def executor(request: pytest.FixtureRequest) -> Executor:
    found: Executor = request.getfixturevalue(request.param)
    return found
