"""Agents and the bridge without Ray: lost replies, lost agents, leases, files that are carried."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drive import trial
from fake_ray import FakeCluster, World

from saebench.config import DataConfig, DatasetConfig
from saebench.errors import PreflightError
from saebench.executors import Attempt
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.ray import agent as agents
from saebench.executors.ray import courier, fleet
from saebench.executors.ray.demand import surplus
from saebench.executors.ray.host import Host, Lease
from saebench.executors.ray.shares import Node, divide, kind_of
from saebench.executors.ray.wire import attempt_to_json, event_of
from saebench.runs.events import Event, EventLog, Verdict, read
from saebench.runs.paths import TrialPaths
from saebench.stores import cache
from saebench.sweep_config import RunConfig
from saebench.worker import Request, work


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("saebench.executors.ray.nodes.WATCH", 0.05)
    monkeypatch.setattr(fleet, "RETURN", 0.2)
    monkeypatch.setattr("saebench.executors.ray.remote.RETRY", 0.01)
    monkeypatch.setattr("saebench.executors.ray.member.PAUSE", 0.01)
    monkeypatch.setenv("SAEBENCH_SCRATCH", str(tmp_path / "scratch"))


def asked(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run a coroutine as a test."""

    def run(tmp_path: Path) -> None:
        asyncio.run(asyncio.wait_for(test(tmp_path), 60))

    return run


def of_sweep(folder: Path, toy: str, number: int = 0, attempt: int = 1, samples: int = 100) -> Attempt:
    return trial(folder / "sweep" / "trials", toy, number, attempt, samples)


def recorded(world: World, number: int = 0) -> list[tuple[str, int]]:
    events = [event_of(message) for message in world.of("event") if message["number"] == number]
    return [(event.type, event.samples) for event in events]


WHOLE = [
    ("start", 0),
    *(pair for at in range(10, 101, 10) for pair in (("eval", at), ("checkpoint", at))),
    ("done", 100),
]


@pytest.mark.parametrize("storage", ["shared", "streamed"])
@pytest.mark.parametrize("seed", [0, 1])
def test_replies_that_are_lost_lose_and_double_nothing(tmp_path: Path, storage: str, seed: int) -> None:
    """Every third call is lost on its way or has its reply lost; which, the agent cannot know."""
    chance = random.Random(seed)

    async def run() -> None:
        cluster = FakeCluster(faults=lambda *_: chance.choice(["", "", "", "", "lose", "drop"]))
        world = World(tmp_path, cluster, lease=20.0, storage=storage)
        await world.open()
        world.start(of_sweep(tmp_path, "count"))
        assert (await world.exit_of(0))["kind"] is None
        assert recorded(world) == WHOLE
        await world.fleet.close()
        assert len(cluster.remotes) == 1

    asyncio.run(asyncio.wait_for(run(), 60))


@asked
async def test_a_lost_agent_is_a_lost_trial_and_comes_back(tmp_path: Path) -> None:
    world = World(tmp_path, FakeCluster(), storage="streamed", grace=60.0)
    await world.open()
    world.start(of_sweep(tmp_path, "count", samples=100_000))
    await world.until(lambda: recorded(world))
    begin = time.monotonic()
    world.cluster.remotes[0].dead = True
    ended = await world.exit_of(0)
    assert (ended["kind"], ended["detail"]) == ("lost", "node a: the actor died")
    assert time.monotonic() - begin < 30, "where files are copied, a successor need not wait for the workers' grace"
    await world.until(lambda: len(world.of("ready")) == 2)
    assert [message["agent"] for message in world.of("gone")] == [1]
    world.said.clear()
    world.start(of_sweep(tmp_path, "quick", attempt=2), slot=2000)
    assert (await world.exit_of(0))["kind"] is None
    await world.fleet.close()


@asked
async def test_on_a_shared_disk_a_lost_trial_waits_until_its_worker_must_have_left(tmp_path: Path) -> None:
    """Its node is gone from the cluster, but may go on training behind a cut cable: lease and grace must pass."""
    world = World(tmp_path, FakeCluster(), lease=0.6)
    await world.open()
    world.start(of_sweep(tmp_path, "count", samples=100_000))
    await world.until(lambda: recorded(world))
    remote, begin = world.cluster.remotes[0], time.monotonic()
    world.cluster.there, remote.cut = [], True
    ended = await world.exit_of(0)
    assert ended["kind"] == "lost"
    assert time.monotonic() - begin > 0.6 + 0.6 + 1.0 - 0.1
    events = [event for event, _ in read(of_sweep(tmp_path, "count").paths.events)]
    assert (events[-1].type, events[-1].info) == ("left", {"why": "leave"}), "its lease had ended"
    assert remote.ended
    await world.fleet.close()


@asked
async def test_a_node_that_is_taken_back_is_left_in_time(tmp_path: Path) -> None:
    world = World(tmp_path, FakeCluster())
    await world.open()
    world.start(of_sweep(tmp_path, "count", samples=100_000))
    await world.until(lambda: recorded(world))
    world.cluster.there = [Node("id-a", "a", 2, 0.0, draining=True)]
    ended = await world.exit_of(0)
    assert (ended["kind"], recorded(world)[-1][0]) == (None, "left")
    assert [message["number"] for message in world.of("preempted")] == [0]
    assert world.of("gone")
    assert "node a: the cluster reclaims it; its trials checkpoint and stop" in world.notes()
    await world.fleet.close()


@asked
async def test_a_trial_that_is_started_on_a_draining_node_leaves(
    tmp_path: Path,
) -> None:
    world = World(tmp_path, FakeCluster())
    await world.open()
    world.cluster.there = [Node("id-a", "a", 2, 0.0, draining=True)]
    await world.until(lambda: world.of("gone"))
    world.start(of_sweep(tmp_path, "count", samples=100_000))
    ended = await world.exit_of(0)
    assert (ended["kind"], recorded(world)[-1][0]) == (None, "left")
    assert [message["number"] for message in world.of("preempted")] == [0]
    await world.fleet.close()


@asked
async def test_nodes_that_join_later_get_agents(tmp_path: Path) -> None:
    world = World(tmp_path, FakeCluster())
    await world.open()
    world.cluster.there.append(Node("id-b", "b", 2, 0.0))
    await world.until(lambda: len(world.of("ready")) == 2)
    joined = world.of("joined")[1]
    assert [slot["device"] for slot in joined["slots"]] == ["b/cpu", "b/cpu"]
    assert [slot["id"] for slot in joined["slots"]] == [2000, 2001]
    await world.fleet.close()


@pytest.mark.parametrize("how", ["kill", "leave"])
def test_a_trial_is_stopped_while_its_files_are_on_their_way(tmp_path: Path, how: str) -> None:
    async def run() -> None:
        world = World(tmp_path, FakeCluster(), storage="streamed")
        await world.open()
        world.start(of_sweep(tmp_path, "count", samples=100_000))
        world.fleet.order({"do": "stop", "number": 0, "how": how})
        assert (await world.exit_of(0))["kind"] == ("killed" if how == "kill" else None)
        await world.fleet.close()

    asyncio.run(asyncio.wait_for(run(), 60))


@asked
async def test_results_are_there_before_done_is_said(tmp_path: Path) -> None:
    """And a trial that left has its checkpoint here, its record is of one piece with the second attempt's."""
    world = World(tmp_path, FakeCluster(), storage="streamed")
    await world.open()
    first = of_sweep(tmp_path, "count", samples=40)
    log = EventLog(first.paths.events)
    world.start(first)
    await world.exit_of(0, ["go", "leave"])
    assert json.loads((first.paths.checkpoint / "state.json").read_text()) == {"at": 20}
    for message in world.of("event"):
        log.append(event_of(message))
    log.close()
    world.said.clear()
    world.start(of_sweep(tmp_path, "count", attempt=2, samples=40))
    await world.exit_of(0)
    assert recorded(world)[0] == ("start", 20)
    assert recorded(world)[-1] == ("done", 40)
    assert not first.paths.sae.exists()
    await world.fleet.close()


@asked
async def test_a_disk_of_the_scheduler_that_is_full_is_no_fault_of_the_trial(tmp_path: Path) -> None:
    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(courier, "Incoming", full)
        world = World(tmp_path, FakeCluster(), storage="streamed")
        await world.open()
        world.start(of_sweep(tmp_path, "count", samples=40))
        ended = await world.exit_of(0, ["leave"])
        assert ended["kind"] == "no_space"
        assert "No space left on device" in ended["detail"]
        await world.fleet.close()


def both_places(folder: Path) -> tuple[TrialPaths, TrialPaths]:
    """Directories of one trial: the scheduler's, with a config, and a node's scratch folder."""
    ours = of_sweep(folder, "count").paths
    ours.root.mkdir(parents=True)
    ours.config.touch()
    return ours, TrialPaths(folder / "scratch" / "toy" / "1" / "trials" / "0000")


@asked
async def test_a_start_brings_what_a_scratch_folder_has_beyond_the_record(tmp_path: Path) -> None:
    """The scheduler died: the node has newer events and a newer checkpoint than were sent."""
    ours, theirs = both_places(tmp_path)
    events = [Event("start", 0), Event("step", 5, {"train/fvu": 0.5}), Event("step", 9, {"train/fvu": 0.4})]
    for place, count, newest in ((ours, 2, "000000000005"), (theirs, 3, "000000000009")):
        log = EventLog(place.events)
        for event in events[:count]:
            log.append(event)
        log.close()
        (place.checkpoint / newest).mkdir(parents=True)
        (place.checkpoint / newest / "state.json").write_text(newest)
    record = theirs.events.read_bytes()
    world = World(tmp_path, FakeCluster(), storage="streamed")
    await world.open()
    assert ours.events.read_bytes() == record
    assert not theirs.root.exists()
    assert sorted(place.name for place in ours.checkpoint.iterdir()) == ["000000000005", "000000000009"]
    assert "trial 0000: checkpoint 000000000009 brought from a" in world.notes()
    await world.fleet.close()


@asked
async def test_what_a_scratch_folder_has_of_another_history_stays_there(tmp_path: Path) -> None:
    ours, theirs = both_places(tmp_path)
    for place, value in ((ours, 0.5), (theirs, 0.7)):
        log = EventLog(place.events)
        log.append(Event("step", 5, {"train/fvu": value}))
        log.close()
    (theirs.checkpoint / "000000000009").mkdir(parents=True)
    (theirs.checkpoint / "000000000009" / "state.json").touch()
    before = ours.events.read_bytes()
    world = World(tmp_path, FakeCluster(), storage="streamed")
    await world.open()
    assert ours.events.read_bytes() == before
    assert not ours.checkpoint.exists()
    await world.fleet.close()


@asked
async def test_a_file_that_changes_on_its_way_is_copied_again(tmp_path: Path) -> None:
    source = tmp_path / "node"
    (source / "sae").mkdir(parents=True)
    (source / "sae" / "w").write_bytes(bytes(courier.PIECE + 5))
    reads = 0

    class Line:
        node_id = "a"

        async def call(self, name: str, text: str, data: bytes | None = None) -> str | bytes:  # noqa: ARG002
            nonlocal reads
            told = json.loads(text)
            if name == "list_files":
                return json.dumps({"files": courier.list_files(source, told["names"])})
            reads += 1
            if reads == 1:
                (source / "sae" / "w").write_bytes(b"x" * (courier.PIECE + 5))
            return courier.read_piece(source / told["name"], told["offset"])

        def kill(self) -> None: ...

    assert await courier.fetch(Line(), 0, ["sae", "absent"], tmp_path / "here") == ["sae/w"]
    assert (tmp_path / "here" / "sae" / "w").read_bytes() == b"x" * (courier.PIECE + 5)
    assert reads == 4
    assert [path.name for path in (tmp_path / "here" / "sae").iterdir()] == ["w"]


def test_an_agent_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "versions", lambda: {**agents.versions(), "torch": "1.0"})
    world = World(tmp_path, FakeCluster())
    with pytest.raises(PreflightError, match=r"run.address: node a has .*'torch': .* this machine .*'torch': '1.0'"):
        asyncio.run(world.open())


def test_a_cluster_without_room_is_told_how_to_get_some(tmp_path: Path) -> None:
    world = World(tmp_path, FakeCluster([Node("id-head", "head", 0, 0.0)]), address="10.0.0.1:6379")
    with pytest.raises(PreflightError) as caught:
        asyncio.run(world.open())
    assert str(caught.value) == (
        "run.executor: ray: no node has room for a trial (head: 0 CPUs); lower run.threads, or start a machine: "
        "ray start --address=10.0.0.1:6379"
    )


def test_a_node_that_does_not_see_the_directory_is_refused_where_that_was_said(tmp_path: Path) -> None:
    async def run() -> list[Any]:
        world = World(tmp_path, FakeCluster(), storage="shared")
        await world.fleet.open()
        where = {"root": str(tmp_path / "nowhere"), "sweep_id": "toy", "nonce": "nonce", "cache_keys": []}
        await world.fleet.recover({**where})
        return world.of("refused")

    (refused,) = asyncio.run(run())
    assert refused["text"].startswith("run.storage: shared: node ")
    assert refused["text"].endswith(
        f" does not see {tmp_path / 'nowhere'}; mount it there, or set run.storage: streamed"
    )


@asked
async def test_a_node_gets_an_entry_of_the_cache_once_and_whole(tmp_path: Path) -> None:
    """The manifest comes last; what is there with its checksum stays, what was damaged comes again."""
    ours, theirs = tmp_path / "cache" / "embeddings", tmp_path / "node" / "embeddings"
    np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32))
    data = DataConfig(model="m", dataset=DatasetConfig(path="d"), num_examples=300, embeddings=str(tmp_path / "e.npy"))
    key = cache.build(data, tmp_path / "cache", copy=True).cache_key
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAEBENCH_CACHE", str(tmp_path / "node"))
        cluster = FakeCluster([Node("id-a", "a", 4, 0.0)])
        world = World(tmp_path, cluster, storage="streamed", agents=2, per_device=1, threads=2)
        await world.open(key)
        await world.until(lambda: len(world.of("ready")) == 2)
        assert [note for note in world.notes() if "copied" in note] == ["node a: 0.0 MB of embeddings copied"]
        found = cache.find(data, tmp_path / "node", key)
        assert found is not None
        assert (found.read(found.train_index) == cache.build(data, tmp_path / "cache").read(found.train_index)).all()
        rows = next((theirs / key).glob("*-rows-*"))
        good = rows.read_bytes()
        rows.write_bytes(bytes(len(good)))
        assert await courier.push_entry(cluster.remotes[0], ours, key) == len(good)
        assert rows.read_bytes() == good
        await world.fleet.close()


# --- leases ----------------------------------------------------------------------------------------------------------


def test_a_lease_ends_and_does_not_come_back() -> None:
    now = 1000.0
    lease = Lease(30, 60, lambda: now)
    now += 119
    assert not lease.has_ended(), "nobody can poll an agent that is still starting"
    assert lease.renew()
    now += 29
    assert lease.renew()
    now += 31
    assert lease.has_ended()
    assert not lease.renew()
    now += 59
    assert not lease.grace_is_over()
    now += 2
    assert lease.grace_is_over()


def test_a_host_that_nobody_polls_lets_its_trials_leave_and_ends(tmp_path: Path) -> None:
    now, ended = 0.0, threading.Event()
    executor = InProcessExecutor(RunConfig(devices="cpu", per_device=1), tmp_path / "cache", "toys:play")
    host = Host(executor, Lease(30, 60, lambda: now), lambda: None, ended.set)
    host.take(0)
    attempt = trial(tmp_path, "count", samples=100_000)
    start = {"do": "start", "number": 0, "slot": 0, "memory_fraction": None, "attempt": attempt_to_json(attempt)}
    host.order(1, [start])
    host.order(1, [start])  # its reply was lost
    while not attempt.paths.events.exists():
        time.sleep(0.01)
    assert not ended.is_set()
    now = 31.0
    assert ended.wait(50)
    assert [event.type for event, _ in read(attempt.paths.events)][-1] == "left"


def test_an_attempt_that_was_overtaken_writes_nothing_more(tmp_path: Path) -> None:
    """Two writers in one directory: the older one stops at its next event, with a record that is not touched."""
    attempt = trial(tmp_path, "count", samples=1000)
    attempt.paths.root.mkdir(parents=True)
    attempt.paths.fence.write_text("1")

    class Line:
        def send(self, event: Event) -> None:
            if event.type == "checkpoint" and event.samples == 20:
                attempt.paths.fence.write_text("2")

        def wait(self, samples: int) -> Any:  # noqa: ARG002
            return Verdict.GO

        def pending(self) -> Any:
            return Verdict.GO

    request = Request(
        number=0, attempt=1, config=attempt.config.model_dump(mode="json"), root=str(attempt.paths.root),
        cache_dir=str(tmp_path), target="toys:play", device="cpu", threads=1, memory_fraction=None, environment={},
        sys_path=[], fenced=True,
    )  # fmt: skip
    with pytest.raises(BaseException, match="attempt 1: stops, since a newer attempt"):
        work(request, Line())
    assert [event.samples for event, _ in read(attempt.paths.events)][-1] == 20


# --- shares ----------------------------------------------------------------------------------------------------------


def test_a_cpu_cluster_is_divided_by_machines() -> None:
    nodes = [Node("1", "a", 8, 0), Node("2", "b", 4, 0), Node("3", "head", 0, 0)]
    run = RunConfig(executor="ray")
    shares = divide(run, nodes, kind_of(run, nodes))
    assert [(s.node_id, s.cpus, s.slots, s.threads) for s in shares] == [("1", 8, 4, 2), ("2", 4, 2, 2)]
    shares = divide(RunConfig(executor="ray", per_device=2), nodes, "cpu")
    assert [(s.cpus, s.slots, s.threads) for s in shares] == [(8, 2, 2), (4, 2, 2)], "all trials get as many threads"
    shares = divide(RunConfig(executor="ray", threads=8), nodes, "cpu")
    assert [s.node_id for s in shares] == ["1"], "a machine with fewer cores than the lock says is left out"


def test_a_number_of_agents_may_be_more_than_there_is_room_for() -> None:
    nodes = [Node("1", "a", 4, 0), Node("2", "b", 4, 0)]
    run = RunConfig(executor="ray", agents=5, per_device=1, threads=2)
    assert [s.node_id for s in divide(run, nodes, "cpu")] == ["1", "2", "1", "2", ""]
    assert {(s.cpus, s.slots) for s in divide(run, nodes, "cpu")} == {(2, 1)}


def test_gpus_are_agents_of_their_own() -> None:
    nodes = [Node("1", "a", 32, 4), Node("2", "b", 8, 0)]
    run = RunConfig(executor="ray", per_device=2)
    shares = divide(run, nodes, kind_of(run, nodes))
    assert [(s.node_id, s.cpus, s.gpus, s.slots, s.threads) for s in shares] == [("1", 8, 1.0, 2, 4)] * 4
    run = RunConfig(executor="ray", gpus_per_trial=0.5)
    assert [(s.gpus, s.slots) for s in divide(run, nodes, kind_of(run, nodes))] == [(0.5, 1)] * 8


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"gpus_per_trial": 0.5}, r"run\.gpus_per_trial: 0\.5: no node has a GPU \(a: 8 CPUs, 0 GPUs\)"),
        ({"devices": (0,)}, r"run\.devices: \(0,\): on a Ray cluster, auto or cpu"),
        ({"devices": "mps"}, r"run\.devices: mps: on a Ray cluster, auto or cpu"),
    ],
)
def test_a_device_that_the_cluster_has_not_is_refused(run: dict[str, Any], words: str) -> None:
    with pytest.raises(PreflightError, match=words):
        kind_of(RunConfig(executor="ray", **run), [Node("1", "a", 8, 0)])


@asked
async def test_a_trial_does_not_inherit_the_token(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "secret")
        world = World(tmp_path, FakeCluster())
        await world.open()
        assert "RAY_AUTH_TOKEN" not in os.environ
        await world.fleet.close()


# --- more agents than trials -----------------------------------------------------------------------------------------


def test_idle_agents_go_as_far_as_they_are_spare() -> None:
    idle = [(1, 2), (2, 2), (4, 1), (5, 0)]
    assert surplus(idle, 3) == [5, 4, 2], "the last ones first; one without usable slots costs nothing"
    assert surplus(idle, 1) == [5, 4]
    assert surplus(idle, -1) == []


def three() -> FakeCluster:
    return FakeCluster([Node(f"id-{name}", name, 1, 0.0) for name in "abc"])


@asked
async def test_agents_that_are_given_back_end_and_come_again_after_a_loss(tmp_path: Path) -> None:
    cluster = three()
    world = World(tmp_path, cluster, storage="streamed", per_device=1, threads=1)
    await world.open()
    world.start(of_sweep(tmp_path, "count", samples=100_000), slot=1000)
    await world.until(lambda: recorded(world))
    world.fleet.set_demand(1, [3, 2])
    assert [remote.dead for remote in cluster.remotes] == [False, True, True]
    assert [note for note in world.notes() if "given back" in note] == [
        "fewer trials left than slots: agents without a trial are given back to the cluster"
    ]
    await asyncio.sleep(0.5)
    assert len(cluster.remotes) == 3, "nobody asks for them again"
    cluster.remotes[0].dead = True
    cluster.there = cluster.there[1:]
    assert (await world.exit_of(0))["kind"] == "lost"
    await world.until(lambda: len(world.of("ready")) == 4)
    assert [remote.node_id for remote in cluster.remotes[3:]] == ["id-b"]
    assert [message["agent"] for message in world.of("gone")] == [1]
    await world.fleet.close()


@asked
async def test_a_share_whose_node_is_gone_is_asked_for_anywhere(tmp_path: Path) -> None:
    """A cluster that grows by itself starts a machine for it."""
    cluster = three()
    world = World(tmp_path, cluster, per_device=1, threads=1)
    await world.open()
    world.fleet.set_demand(1, [3, 2])
    cluster.there = []
    await world.until(lambda: not world.fleet._nodes.there)
    cluster.remotes[0].dead = True
    await world.until(lambda: len(cluster.remotes) == 4)
    assert cluster.remotes[3].node_id == ""
    await world.fleet.close()


@asked
async def test_agents_that_wait_for_room_are_no_longer_asked_for_when_trials_run_out(tmp_path: Path) -> None:
    """Else a cluster that grows by itself would start a machine for nothing."""
    cluster = three()
    world = World(tmp_path, cluster, per_device=1, threads=1, agents=4)
    await world.open()
    assert [remote.node_id for remote in cluster.remotes] == ["id-a", "id-b", "id-c", ""]
    world.fleet.set_demand(4, [])
    assert not cluster.remotes[3].dead
    world.fleet.set_demand(3, [])
    assert [remote.dead for remote in cluster.remotes] == [False, False, False, True]
    world.fleet.set_demand(2, [3])
    cluster.there.append(Node("id-d", "d", 1, 0.0))
    await asyncio.sleep(0.3)
    assert len(cluster.remotes) == 4, "a machine that joins now gets no agent"
    await world.fleet.close()


@asked
async def test_a_fleet_that_is_closed_leaves_no_task(tmp_path: Path) -> None:
    """Python says "Task was destroyed but it is pending!" of one that is left, whenever it is collected."""
    before = asyncio.all_tasks()
    world = World(tmp_path, FakeCluster(), storage="streamed")
    await world.fleet.open()
    await world.until(lambda: world.of("joined"))
    await world.fleet.close()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
