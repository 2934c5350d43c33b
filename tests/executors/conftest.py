from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from drive import drive, trial
from ray_cluster import Cluster

from saebench.executors import Executor
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.local import LocalExecutor
from saebench.executors.ray.executor import RayExecutor
from saebench.executors.spawner import FreshSpawner
from saebench.runs.paths import SweepPaths
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


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Cluster]:
    """A head without CPUs; nodes are started where they are needed (`ensure`)."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    cluster = Cluster()
    try:
        cluster.start_head()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def ray_session(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayExecutor]:
    """One agent with two slots."""
    ray_cluster.ensure("a")
    run = TWO_SLOTS.model_copy(update={"executor": "ray", "address": ray_cluster.address, "agents": 1})
    folder = tmp_path_factory.mktemp("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment().items():
            patch.setenv(name, value)
        executor = RayExecutor(run, folder / "cache", "toys:play")
    executor.recover(SweepPaths(folder / "sweep"), lambda _: None)
    warm_up(executor, folder)
    yield executor
    executor.close()


@pytest.fixture
def ray(ray_session: RayExecutor) -> RayExecutor:
    return ray_session


def warm_up(executor: Executor, folder: Path) -> None:
    """Let the process that forks workers import what they need: on a busy machine, a minute."""
    while not executor.slots:
        executor.poll(1)
    drive(executor, [trial(folder, "quick", 9999)], limit=240)


@pytest.fixture(params=["in_process", "local", "spawned", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Executor:
    found: Executor = request.getfixturevalue(request.param)
    return found
