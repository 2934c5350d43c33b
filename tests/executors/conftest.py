from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from saebench.executors import Executor
from saebench.executors.inprocess import InProcessExecutor
from saebench.executors.local import LocalExecutor
from saebench.executors.nursery import Spawning
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
    executor = LocalExecutor(TWO_SLOTS, tmp_path / "cache", "toys:play", Spawning())
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
