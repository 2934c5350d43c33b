"""Calls to an agent, which may be lost, and the kinds of loss. No Ray."""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

from saebench.executors.ray.wire import Json


class LostError(Exception):
    """The agent is lost for good."""


class UnreachableError(Exception):
    """No reply: the call may have been executed or not, and the agent may still be alive."""


class RefusedError(Exception):
    """The agent replied with an error; `str()` is one line."""


class Remote(Protocol):
    """The methods of an `Agent`, each called with JSON text and for `write` with bytes."""

    @property
    def node_id(self) -> str:
        """Ray's id of the node; "" before it has one."""
        ...

    async def call(self, name: str, text: str, data: bytes | None = None) -> str | bytes:
        """Raises LostError, UnreachableError."""
        ...

    def kill(self) -> None:
        """End the agent, if it can be reached."""
        ...


RETRY = 0.5
"""Seconds between two tries of a call without a reply."""


async def ask(remote: Remote, method: str, timeout: float, data: bytes | None = None, /, **asked: object) -> Json:
    """Call an idempotent method, and repeat the call if there is no reply, for `timeout` seconds in all. Raises
    LostError, RefusedError, UnreachableError."""
    reply = await _insist(remote, method, timeout, data, asked)
    answer: Json = json.loads(reply)
    if "error" in answer:
        raise RefusedError(answer["error"])
    return answer


async def ask_bytes(remote: Remote, method: str, timeout: float, /, **asked: object) -> bytes:
    """Do `ask` for a method that returns bytes."""
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
