"""A cluster without Ray: real agents in this process, on in-process executors, behind a line that can lose replies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saebench.executors import Attempt
from saebench.executors.in_process import InProcessExecutor
from saebench.executors.ray.agent import Agent
from saebench.executors.ray.fleet import Fleet
from saebench.executors.ray.remote import LostError, UnreachableError
from saebench.executors.ray.setup import Setup
from saebench.executors.ray.shares import Node, Share
from saebench.executors.ray.wire import Json, attempt_to_json
from saebench.sweep_config import RunConfig

Faults = Callable[[str, int], str]
"""(method, how many calls there were before) -> "" | "lose" (the reply) | "drop" (the call)."""


def none(_: str, __: int) -> str:
    return ""


class FakeRemote:
    """An agent; `dead` ends it, `cut` is a cable that is pulled out."""

    def __init__(self, share: Share, setup: str, faults: Faults) -> None:
        self.share, self._faults = share, faults
        self.calls: list[str] = []
        self.ended = False
        self.dead = self.cut = False
        self.agent = Agent(setup, in_process, self._end)

    def _end(self) -> None:
        self.ended = self.dead = True

    @property
    def node_id(self) -> str:
        return self.share.node_id

    async def call(self, name: str, text: str, data: bytes | None = None) -> str | bytes:
        await asyncio.sleep(0)
        while not self.node_id and not self.dead:  # it waits for room
            await asyncio.sleep(0.05)
        if self.dead:
            raise LostError("the actor died")
        fault = "drop" if self.cut else self._faults(name, len(self.calls))
        self.calls.append(name)
        if fault == "drop":
            await asyncio.sleep(0.01)
            raise UnreachableError("unavailable")
        method = getattr(self.agent, name)
        json.loads(text)
        reply: str | bytes = await (method(text) if data is None else method(text, data))
        assert {type(text), type(data), type(reply)} <= {str, bytes, type(None)}, "Ray pickles everything else"
        if fault == "lose":
            raise UnreachableError("unavailable")
        return reply

    def kill(self) -> None:
        self.dead = True


def in_process(run: RunConfig, cache_dir: Path, target: str, *, fenced: bool) -> InProcessExecutor:
    assert fenced
    return InProcessExecutor(run, cache_dir, target)


@dataclass
class FakeCluster:
    there: list[Node] = field(default_factory=lambda: [Node("id-a", "a", 2, 0.0)])
    faults: Faults = none
    remotes: list[FakeRemote] = field(default_factory=list)

    def nodes(self) -> list[Node]:
        return list(self.there)

    def create(self, share: Share, setup: str) -> FakeRemote:
        self.remotes.append(FakeRemote(share, setup, self.faults))
        return self.remotes[-1]


class World:
    """A fleet and what it has told the scheduler."""

    def __init__(self, folder: Path, cluster: FakeCluster, lease: float = 12.0, **run: Any) -> None:
        self.folder, self.cluster, self.said = folder, cluster, list[Json]()
        config = RunConfig.model_validate({"executor": "ray", "devices": "cpu", "per_device": 2, "grace": 1.0, **run})
        self.fleet = Fleet(cluster, Setup(config, str(folder / "cache"), "toys:play", lease), self.said.append)

    async def open(self, *cache_keys: str) -> None:
        await self.fleet.open()
        (self.folder / "sweep").mkdir(parents=True, exist_ok=True)
        (self.folder / "sweep" / "nonce").touch()
        where = {"root": str(self.folder / "sweep"), "sweep_id": "toy", "nonce": "nonce"}
        await self.fleet.recover({"cache_keys": cache_keys, **where})

    def start(self, attempt: Attempt, slot: int = 1000) -> None:
        order = {"number": attempt.number, "slot": slot, "memory_fraction": None}
        self.fleet.start({**order, "attempt": attempt_to_json(attempt)})

    async def until(self, condition: Callable[[], Any], limit: float = 50.0) -> None:
        end = asyncio.get_running_loop().time() + limit
        while not condition():
            assert asyncio.get_running_loop().time() < end, self.said
            await asyncio.sleep(0.01)

    def of(self, what: str) -> list[Json]:
        return [message for message in self.said if message["type"] == what]

    def notes(self) -> list[str]:
        return [message["text"] for message in self.of("note")]

    async def exit_of(self, number: int, verdicts: Iterable[str] = ()) -> Json:
        """Answer every `eval` until the trial has ended."""
        answered, given = 0, iter(verdicts)
        while True:
            evals = [m for m in self.of("event") if m["number"] == number and m["of"] == "eval"]
            for _ in evals[answered:]:
                self.fleet.order({"do": "answer", "number": number, "verdict": next(given, "go")})
            answered = len(evals)
            for message in self.of("exit"):
                if message["number"] == number:
                    return message
            await asyncio.sleep(0.005)
