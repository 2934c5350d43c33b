"""The bridge's view of one agent: poll, acknowledge, send orders in sequence, detect its loss. No Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from saebench.devices import USABLE_MEMORY
from saebench.executors.ray.remote import LostError, Remote, UnreachableError
from saebench.executors.ray.shares import Share
from saebench.executors.ray.wire import Json

POLL = 5.0
"""Seconds that an agent delays the reply to a poll if it has no message."""
SLACK = 5.0
"""Seconds beyond `POLL` after which a poll counts as lost."""
PAUSE = 0.25
"""Seconds until a call without a reply is repeated."""


@dataclass
class Member:
    """An agent, its messages and its orders; times are of the bridge's loop."""

    number: int
    share: Share
    remote: Remote
    epoch: str
    node: str
    """Name of the node, for messages and for the identity of devices."""
    lease: float
    deliver: Callable[[Member, Json], None]
    """Takes each message once, in order."""
    about: Json = field(default_factory=dict)
    shared: bool = True
    recovered_at: float | None = None
    """When the workers of earlier agents on its node have ended."""
    polled_at: float = 0.0
    """When the last poll was sent; its lease starts there."""
    alive: bool = True
    draining: bool = False
    """The cluster reclaims its node: no new trials."""
    _acknowledged: int = 0
    _orders: list[Json] = field(default_factory=list)
    """Orders that are not acknowledged yet."""
    _sent: int = 0
    """Number of acknowledged orders."""
    _ordered: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self) -> None:
        """Poll until the agent is lost. Raises LostError, also if it sent no reply for a whole lease."""
        loop = asyncio.get_running_loop()
        answered = loop.time()
        sender = asyncio.create_task(self._send_orders())
        try:
            while True:
                self.polled_at = loop.time()
                try:
                    reply = await self._call("poll", acknowledged=self._acknowledged, wait=POLL)
                    answered = loop.time()
                except UnreachableError as error:
                    if loop.time() - answered > self.lease:
                        raise LostError(f"no reply for {self.lease:g} s ({error})") from error
                    await asyncio.sleep(PAUSE)
                    continue
                if reply.get("epoch") != self.epoch:  # it has not begun
                    await asyncio.sleep(PAUSE)
                    continue
                for at, message in reply["messages"]:
                    if at > self._acknowledged:
                        self._acknowledged = at
                        self.deliver(self, message)
        finally:
            self.alive = False
            sender.cancel()

    def order(self, order: Json) -> None:
        """Send an order after those before it."""
        self._orders.append(order)
        self._ordered.set()

    async def _send_orders(self) -> None:
        """Send all waiting orders in one call, repeated until it is acknowledged."""
        while True:
            self._ordered.clear()
            if not self._orders:
                await self._ordered.wait()
                continue
            waiting = list(self._orders)
            try:
                await self._call("order", first=self._sent + 1, orders=waiting)
                self._sent += len(waiting)
                del self._orders[: len(waiting)]
            except UnreachableError:
                await asyncio.sleep(PAUSE)
            except LostError:
                return

    async def _call(self, name: str, **asked: Any) -> Json:
        try:
            reply = await asyncio.wait_for(self.remote.call(name, json.dumps(asked)), POLL + SLACK)
        except TimeoutError as error:
            raise UnreachableError(f"no reply within {POLL + SLACK:g} s") from error
        found: Json = json.loads(reply)
        return found


def slots_of(member: Member) -> list[Json]:
    """Return the slots of an agent as the scheduler uses them: numbered and named over the whole cluster."""
    gpus = member.share.gpus
    fraction = {"memory_fraction": round(USABLE_MEMORY * gpus, 4)} if 0 < gpus < 1 else {}
    return [
        slot
        | {
            "id": 1000 * member.number + slot["id"],
            "device": f"{member.node}/{slot['device']}",
            "name": f"{member.node} {slot['name']}",
            "node": member.node,
        }
        | fraction
        for slot in member.about["slots"]
    ]
