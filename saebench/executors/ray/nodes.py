"""Watch the machines of a cluster: which join, which will be reclaimed. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from saebench.executors.ray.remote import Remote
from saebench.executors.ray.shares import Node, Share

WATCH = 5.0
"""Seconds between two checks."""
PATIENCE = 30.0
"""Seconds that one check may take."""


class Cluster(Protocol):
    """The part of `cluster.RayCluster` that a fleet uses."""

    def nodes(self) -> list[Node]: ...
    def create(self, share: Share, setup: str) -> Remote: ...


class Nodes:
    """See the module."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._known: set[str] = set()
        self._leaving: set[str] = set()
        self.names: dict[str, str] = {}
        """Ray's id of a node -> its name."""
        self.there: set[str] = set()
        """Ids of the nodes that the last look found, without those that are about to go."""

    async def look(self) -> list[Node]:
        """Return the nodes that are alive."""
        nodes = await asyncio.wait_for(asyncio.to_thread(self._cluster.nodes), PATIENCE)
        self.names |= {node.id: node.name for node in nodes}
        self.there = {node.id for node in nodes if not node.draining}
        return nodes

    async def first_look(self) -> list[Node]:
        """Run `look`; nodes that exist now do not count as new."""
        nodes = await self.look()
        self._known = {node.id for node in nodes}
        return nodes

    async def watch(self, joined: Callable[[list[Node]], None], leaving: Callable[[Node], None]) -> None:
        """Call `joined` with new nodes, and `leaving` once for each node that the cluster will reclaim."""
        while True:
            await asyncio.sleep(WATCH)
            try:
                nodes = await self.look()
            except TimeoutError:
                continue
            for node in nodes:
                if node.draining and node.id not in self._leaving:
                    self._leaving.add(node.id)
                    leaving(node)
            new = [node for node in nodes if node.id not in self._known and not node.draining]
            self._known |= {node.id for node in new}
            if new:
                joined(new)
