"""The scheduler's end of a cluster, with a bridge that is a few lines of Python and no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from drive import trial

from saebench.executors.ray.executor import RayExecutor
from saebench.runs.paths import SweepPaths
from saebench.sweep_config import RunConfig

BRIDGE = """
import json, os, socket, sys
lines = socket.socket(fileno=int(sys.argv[2])).makefile("rw", buffering=1)
def say(**message):
    print(json.dumps(message), file=lines, flush=True)
def slot(agent, at, device):
    return {"id": 1000 * agent + at, "device": device, "name": f"{device} {at}", "threads": 1, "node": device[0]}
lines.readline()
say(type="note", text="usage statistics: " + os.environ["RAY_USAGE_STATS_ENABLED"])
say(type="joined", agent=1, slots=[slot(1, 0, "a/cpu"), slot(1, 1, "a/cpu")])
say(type="joined", agent=2, slots=[slot(2, 0, "b/cuda:0")])
say(type="joined", agent=3, slots=[slot(3, 0, "b/cuda:1")])
say(type="open")
for line in lines:
    with open(sys.argv[1], "a") as heard:
        heard.write(line)
    order = json.loads(line)
    if order["op"] == "recover":
        for agent in (1, 2, 3):
            say(type="ready", agent=agent, shared=True)
        say(type="recovered")
    if order["op"] == "close":
        break
"""


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def executor(tmp_path: Path, notes: list[str]) -> Iterator[RayExecutor]:
    (tmp_path / "bridge.py").write_text(BRIDGE)
    run = RunConfig(executor="ray", address="nowhere:1")
    made = RayExecutor(run, tmp_path / "cache", bridge=(str(tmp_path / "bridge.py"), str(tmp_path / "heard")))
    made.recover(SweepPaths(tmp_path / "sweep"), notes.append)
    yield made
    made.close()


@pytest.fixture
def demands(tmp_path: Path) -> Callable[[int], list[Any]]:
    """The first orders about demand that the bridge got: (slots, agents that are given back)."""

    def read(count: int) -> list[Any]:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            orders = [json.loads(line) for line in (tmp_path / "heard").read_text().splitlines()]
            found = [(order["slots"], order["give_back"]) for order in orders if order["op"] == "demand"]
            if len(found) == count:
                return found
            time.sleep(0.01)
        raise TimeoutError(found)

    return read


def names(executor: RayExecutor) -> list[str]:
    return [slot.name for slot in executor.slots]


def test_idle_agents_are_given_back_when_there_are_more_slots_than_trials(
    executor: RayExecutor, demands: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    executor.set_demand(4)
    assert len(executor.slots) == 4
    executor.start(trial(tmp_path / "sweep" / "trials", "count"), executor.slots[2])
    executor.set_demand(2)
    executor.set_demand(2)
    assert names(executor) == ["a/cpu 0", "a/cpu 1", "b/cuda:0 0"], "two slots of one agent go, or none"
    executor.set_demand(1)
    assert names(executor) == ["b/cuda:0 0"], "it runs a trial"
    assert demands(3) == [(4, []), (2, [3]), (1, [1])]


def test_a_device_that_is_out_of_service_is_given_back(
    executor: RayExecutor, demands: Callable[[int], list[Any]]
) -> None:
    executor.quarantine(executor.slots[2])
    executor.set_demand(4)
    executor.set_demand(3)
    assert names(executor) == ["a/cpu 0", "a/cpu 1", "b/cuda:1 0"]
    assert demands(2) == [(5, []), (3, [2])], "while one is missing, another slot would be used"


def test_ray_gets_no_usage_statistics_whatever_the_users_environment_says(
    monkeypatch: pytest.MonkeyPatch, notes: list[str], request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    request.getfixturevalue("executor")
    assert notes == ["usage statistics: 0"]
