"""Sweeps on a real Ray cluster of three nodes on this machine: what it computes, whatever dies, and what it says.

The nodes share this machine's disk; `storage: streamed` makes them use scratch folders and caches of their own.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from ray_cluster import Cluster
from stores.corpora import sentences, write_jsonl, write_static_model

from saebench.config import DataConfig, DatasetConfig
from saebench.errors import PreflightError
from saebench.executors.ray.executor import RayExecutor
from saebench.runs import events
from saebench.runs.paths import SweepPaths
from saebench.runs.state import load_config, read_state
from saebench.stores import cache
from saebench.sweep import SweepResult, run_sweep
from saebench.sweep_config import RunConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
TARGET = "real_trial:plain"


def spec(folder: Path, name: str, samples: int, **run: Any) -> dict[str, Any]:
    """Four trials on embeddings of one's own."""
    return {
        "name": name,
        "data": {"embeddings": str(folder / "e.npy"), "holdout": 0.3},
        "sae": [{"type": "topk", "k": [2, 4], "dict_size": 64}],
        "train": {"samples": samples, "batch_size": 64, "eval_every": samples // 4, "lr": 0.003,
                  "checkpoint_every": samples // 8},
        "seeds": [0, 1],
        "search": {"refine": 0},
        "prune": {"pruner": "none"},
        "tracking": {"uri": f"sqlite:///{folder / 'mlflow.db'}"},
        "run": {"devices": "cpu", "per_device": 1, "threads": 1, **run},
    }  # fmt: skip


@pytest.fixture(scope="module")
def world(ray_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with embeddings, and the environment of a user of the cluster."""
    ray_cluster.ensure("abc")
    folder = tmp_path_factory.mktemp("world")
    generator = np.random.default_rng(0)
    codes = generator.random((2000, 30)) * (generator.random((2000, 30)) < 0.1)
    np.save(folder / "e.npy", (codes @ generator.normal(size=(30, 16)) + 0.1).astype(np.float32))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ray_cluster.environment().items():
            patch.setenv(name, value)
        yield folder


def sweep(folder: Path, name: str, samples: int, **run: Any) -> SweepResult:
    return run_sweep(
        spec(folder, name, samples, **run),
        runs_dir=folder / "runs", cache_dir=folder / "cache", quiet=True, target=TARGET,
    )  # fmt: skip


def histories(result: SweepResult) -> list[Any]:
    """Every point of every trial, and the bytes of its results; no times, hosts and attempts. In which order a search
    hands trials out depends on how many run at once."""
    found = []
    for trial in SweepPaths(result.root).trials():
        points = [
            (e.type, e.samples, {k: v for k, v in e.values.items() if not k.startswith("system/")})
            for e, _ in events.read(trial.events)
            if e.type in ("step", "eval", "done")
        ]
        files = [trial.sae / "sae.safetensors", trial.evaluation]
        config = load_config(trial)
        assert config is not None
        found.append((config.stratum, config.seed, points, [file.read_bytes() for file in files]))
    return sorted(found, key=lambda one: one[:2])


def nodes_of(result: SweepResult) -> set[str]:
    states = [read_state(trial) for trial in SweepPaths(result.root).trials()]
    return {attempt.slot.split()[0] for state in states if state for attempt in state.attempts}


SAMPLES = 64 * 400


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> list[Any]:
    """On this machine, without any cluster."""
    return histories(sweep(world, "local", SAMPLES))


@pytest.mark.parametrize("storage", ["shared", pytest.param("streamed", marks=pytest.mark.minutes)])
def test_three_nodes_compute_what_one_machine_does(
    world: Path, ray_cluster: Cluster, undisturbed: list[Any], storage: str
) -> None:
    result = sweep(world, storage, SAMPLES, executor="ray", address=ray_cluster.address, storage=storage)
    assert (result.exit_code, result.counts) == (0, {"complete": 4})
    assert histories(result) == undisturbed, "to the last bit"
    assert len(nodes_of(result)) > 1
    token = ray_cluster.token.read_text()
    for file in result.root.rglob("*"):
        assert not file.is_file() or token.encode() not in file.read_bytes(), file
    copied = [list((node.cache / "embeddings").glob("*/manifest.json")) for node in ray_cluster.nodes[1:]]
    assert any(copied) == (storage == "streamed"), "where a trial ran, and nowhere if nodes see the scheduler's cache"


@pytest.mark.minutes
def test_three_nodes_encode_what_one_machine_does(world: Path, ray_cluster: Cluster) -> None:
    """They do not see the scheduler's cache: texts go there, encoded pieces come back."""
    model = write_static_model(world / "model")
    texts = write_jsonl(world / "texts.jsonl", sentences(5000))
    data = DataConfig(model=model, dataset=DatasetConfig(path="json", data_files=str(texts)), num_examples=5000)
    here = cache.build(data, world / "here")
    run = RunConfig(executor="ray", address=ray_cluster.address, storage="streamed", devices="cpu", per_device=1)
    executor = RayExecutor(run, world / "there", TARGET)
    try:
        launches = executor.encoders()
        there = cache.build(data, world / "there", launches)
    finally:
        executor.close()
    assert {launch.name for launch in launches} == {"a cpu", "b cpu", "c cpu"}
    files = sorted(path.name for path in here.directory.iterdir())
    assert files == sorted(path.name for path in there.directory.iterdir())
    assert all((here.directory / name).read_bytes() == (there.directory / name).read_bytes() for name in files)


def strike(root: Path, at: Callable[[int], None], checkpoints: int) -> threading.Thread:
    """Call `at` with the pid of the first trial that has written so many checkpoints."""

    def watch() -> None:
        limit = time.monotonic() + 200
        while time.monotonic() < limit:
            for trial in SweepPaths(root).trials():
                found = [event for event, _ in events.read(trial.events)]
                starts = [event for event in found if event.type == "start"]
                if sum(event.type == "checkpoint" for event in found) >= checkpoints and found[-1].type != "done":
                    at(starts[-1].info["pid"])
                    return
            time.sleep(0.01)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def agent_of(worker: int) -> psutil.Process:
    """The actor above the process that workers are forked from."""
    return psutil.Process(psutil.Process(worker).ppid()).parent() or psutil.Process()


@pytest.mark.minutes
def test_an_agent_is_killed(world: Path, ray_cluster: Cluster, undisturbed: list[Any]) -> None:
    """Its worker leaves; the trial resumes when another agent of the node has seen to that."""
    killed = []

    def kill(worker: int) -> None:
        agent = agent_of(worker)
        killed.append(agent.name())
        agent.kill()

    root = world / "runs" / "agent"
    watch = strike(root, kill, 2)
    result = sweep(world, "agent", SAMPLES, executor="ray", address=ray_cluster.address, agents=2, grace=5.0)
    watch.join(60)
    assert killed == ["ray::Agent"]
    assert (result.exit_code, result.counts) == (0, {"complete": 4})
    assert histories(result) == undisturbed
    kinds = [a.kind for t in SweepPaths(root).trials() if (s := read_state(t)) for a in s.attempts]
    assert sorted(str(kind) for kind in kinds) == ["None"] * 4 + ["lost"]


@pytest.mark.minutes
def test_a_node_is_killed(world: Path, ray_cluster: Cluster, undisturbed: list[Any]) -> None:
    """With all that ran there. The others take over from the checkpoints that had been sent, or from the start."""
    killed = []

    def kill(worker: int) -> None:
        node = next(n for n in ray_cluster.nodes if worker in {p.pid for p in n.family()})
        killed.append(node)
        node.kill()

    root = world / "runs" / "node"
    watch = strike(root, kill, 2)
    result = sweep(world, "node", SAMPLES, executor="ray", address=ray_cluster.address, storage="streamed", grace=5.0)
    watch.join(60)
    assert len(killed) == 1
    ray_cluster.nodes.remove(killed[0])
    ray_cluster.start_node(killed[0].name)
    assert (result.exit_code, result.counts) == (0, {"complete": 4})
    assert histories(result) == undisturbed


RUN = "import json, sys; from saebench.sweep import run_sweep; sys.exit(run_sweep(**json.loads(sys.argv[1])).exit_code)"


@pytest.mark.minutes
def test_the_scheduler_is_killed_and_started_again(world: Path, ray_cluster: Cluster, undisturbed: list[Any]) -> None:
    root = world / "runs" / "scheduler"
    where = {"executor": "ray", "address": ray_cluster.address, "storage": "streamed", "agents": 2}
    given = {
        "spec": spec(world, root.name, SAMPLES, **where),
        "runs_dir": str(world / "runs"), "cache_dir": str(world / "cache"), "quiet": True, "target": TARGET,
    }  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", RUN, json.dumps(given)], env=os.environ) as process:
        workers: list[int] = []
        strike(root, workers.append, 2).join(200)
        assert workers
        process.kill()
    limit = time.monotonic() + 30
    while psutil.pid_exists(workers[0]) and psutil.Process(workers[0]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, "a worker outlives its scheduler"
        time.sleep(0.05)
    result = run_sweep(**given)
    assert (result.exit_code, result.counts) == (0, {"complete": 4})
    assert histories(result) == undisturbed
    resumed = [e.samples for t in SweepPaths(root).trials() for e, _ in events.read(t.events) if e.type == "start"]
    assert max(resumed) > 0, "began from scratch"


# --- words -----------------------------------------------------------------------------------------------------------


def words(cache: Path, **run: Any) -> str:
    begin = time.monotonic()
    with pytest.raises(PreflightError) as caught:
        RayExecutor(RunConfig.model_validate({"executor": "ray", "devices": "cpu", **run}), cache, TARGET)
    assert time.monotonic() - begin < 30
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_address_where_nobody_is(world: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    said = words(world / "cache", address=f"127.0.0.1:{port}")
    assert (
        said
        == f"run.address: 127.0.0.1:{port}: no Ray head answers there (Connection refused); start one: ray start --head"
    )
    assert words(world / "cache", address="cluster") == "run.address: cluster: is not HOST:PORT of a Ray head"


def test_another_token(world: Path, ray_cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("0" * 48)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    said = words(world / "cache", address=ray_cluster.address)
    assert (
        said == f"run.address: {ray_cluster.address}: the cluster has another token than RAY_AUTH_TOKEN_PATH here; "
        "copy its token file to this machine"
    )
    monkeypatch.delenv("RAY_AUTH_MODE")
    said = words(world / "cache", address=ray_cluster.address)
    assert said.startswith("run.executor: ray: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here")


def test_no_gpu_like_that(world: Path, ray_cluster: Cluster) -> None:
    said = words(world / "cache", address=ray_cluster.address, gpus_per_trial=1)
    assert said.startswith("run.gpus_per_trial: 1: no node has a GPU (")
    assert "a: 2 CPUs, 0 GPUs" in said
