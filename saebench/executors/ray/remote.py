"""An agent as the bridge sees it: calls that may get lost, and how the loss is classified. No Ray."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from saebench.executors.ray.wire import Json


class LostError(Exception):
    """The agent is gone for good."""


class UnreachableError(Exception):
    """No reply: the call may have been executed or not, and the agent may still be there."""


class RefusedError(Exception):
    """The agent's answer is an error; `str()` is one line."""


class Remote(Protocol):
    """The methods of an `Agent`, each called with JSON text and for `write` with bytes."""

    @property
    def node_id(self) -> str:
        """Ray's id of the node, "" while it has none."""
        ...

    async def call(self, name: str, text: str, data: bytes | None = None) -> str | bytes:
        """Raises LostError, UnreachableError."""
        ...

    def kill(self) -> None:
        """End the agent, if it can be reached."""
        ...


RETRY = 0.5
"""Seconds between two tries of a call that got no reply."""


async def ask(remote: Remote, method: str, timeout: float, data: bytes | None = None, /, **asked: object) -> Json:
    """Call a method that may be called twice without harm; again where no reply came, for `timeout` seconds in all.
    Raises LostError, RefusedError, UnreachableError."""
    reply = await _insist(remote, method, timeout, data, asked)
    answer: Json = json.loads(reply)
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer


async def ask_bytes(remote: Remote, method: str, timeout: float, /, **asked: object) -> bytes:
    """`ask` for a method that returns bytes."""
    reply = await _insist(remote, method, timeout, None, asked)
    return reply if isinstance(reply, bytes) else reply.encode()


async def _insist(
    remote: Remote, name: str, timeout: float, data: bytes | None, asked: dict[str, object]
) -> str | bytes:
    text, loop = json.dumps(asked), asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        try:
            return await asyncio.wait_for(remote.call(name, text, data), max(0.1, end - loop.time()))
        except (TimeoutError, UnreachableError) as error:
            if loop.time() >= end:
                raise UnreachableError(f"no answer for {timeout:g} s") from error
            await asyncio.sleep(RETRY)
