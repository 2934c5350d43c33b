"""Encoders on the nodes: the children of `stores.encoder_pool` over the same numbered orders and messages as trials.

`Children` is an agent's end, `Encoding` the bridge's, encoders.py the scheduler's. If a node does not see the
scheduler's cache, the bridge copies the texts there and the embeddings back before it passes on `done`.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saebench.executors.ray import courier
from saebench.executors.ray.lives import UNREACHED
from saebench.executors.ray.member import Member
from saebench.executors.ray.pieces import list_files
from saebench.executors.ray.remote import LostError
from saebench.executors.ray.wire import Json
from saebench.runs.paths import embeddings_dir
from saebench.stores import child_process
from saebench.stores.child_process import Child, Inbox, Message

MODULE = "saebench.stores.encoder_process"
"""The commands that an agent may start besides trials."""


class Children:
    """Encoders on this node. `put`: passes a message to the bridge."""

    def __init__(self, put: Callable[[Json], None]) -> None:
        self._put = put
        self._children: dict[int, Child] = {}
        self._inbox: Inbox = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def obey(self, order: Json) -> None:
        """start, send or close."""
        number, what = order["id"], order["what"]
        if what == "start":
            if self._thread is None:
                self._thread = threading.Thread(target=self._pass_on, daemon=True)
                self._thread.start()
            self._children[number] = child_process.start(MODULE, order["name"], order["environment"], self._inbox)
        elif what == "send" and number in self._children:
            self._children[number].send(order["message"])
        elif what == "close" and number in self._children:
            self._children.pop(number).close()

    def _pass_on(self) -> None:
        while True:
            child, message = self._inbox.get()
            for number, known in list(self._children.items()):
                if known is child:
                    self._put({"type": "child", "id": number, "message": message})

    def close(self) -> None:
        for number in list(self._children):
            self._children.pop(number).close()


LOST = "was lost with its agent"


def _why(what: str, error: BaseException) -> str:
    """Return why a child was lost: the loss of an agent may first be noticed while a file is copied."""
    return LOST if isinstance(error, LostError) else f"{what}: {error}"


class Encoding:
    """The bridge's end."""

    def __init__(self, cache_dir: str, send: Callable[[Json], None], start: Callable[[Any], object]) -> None:
        self._cache, self._send, self._start = cache_dir, send, start
        self._children: dict[int, _Line] = {}
        self._texts: dict[tuple[str, str], asyncio.Lock] = {}
        self._sent: set[tuple[str, str]] = set()

    def order(self, order: Json, member: Member | None) -> None:
        """Handle an order of the scheduler; `member` runs the child that it starts."""
        number = order["id"]
        if order["what"] == "start":
            if member is None or not member.alive:
                self._say(number, {"type": "gone", "why": LOST})
                return
            line = self._children[number] = _Line(member)
            self._start(self._orders(line))
            self._start(self._replies(number, line))
        if number in self._children:
            self._children[number].orders.put_nowait({**order, "do": "child"})

    def hear(self, message: Json) -> None:
        """Handle a message of an agent."""
        if message["id"] in self._children:
            self._children[message["id"]].replies.put_nowait(message["message"])

    def lost(self, member: Member) -> None:
        """Report the children of a lost agent as lost."""
        for number in [n for n, line in self._children.items() if line.member is member]:
            del self._children[number]
            self._say(number, {"type": "gone", "why": LOST})

    async def _orders(self, line: _Line) -> None:
        while line.member.alive:
            order = await line.orders.get()
            message = order.get("message", {})
            if line.is_far(self._cache) and "folder" in message:
                line.key = Path(message["folder"]).name
                folder = embeddings_dir(Path(line.member.about["cache_dir"])) / line.key
                order = {**order, "message": {**message, "folder": str(folder)}}
            elif line.is_far(self._cache) and "texts" in message:
                await self._bring_texts(line, message["texts"])
            line.member.order(order)

    async def _bring_texts(self, line: _Line, name: str) -> None:
        """Run once for each node; a broken connection is noticed elsewhere."""
        place = (line.member.remote.node_id, f"{line.key}/{name}")
        async with self._texts.setdefault(place, asyncio.Lock()):
            if place not in self._sent:
                root = embeddings_dir(Path(self._cache))
                files = await asyncio.to_thread(list_files, root, [place[1]])
                try:
                    await courier.push(line.member.remote, None, root, files)
                    await courier.make_folder(line.member.remote, f"{line.key}/parts")
                except UNREACHED as error:
                    line.replies.put_nowait({"type": "gone", "why": _why("got no texts", error)})
                    return
                self._sent.add(place)

    async def _replies(self, number: int, line: _Line) -> None:
        while line.member.alive and number in self._children:
            message = await line.replies.get()
            if message["type"] == "done" and line.is_far(self._cache):
                name = f"{line.key}/parts/{message['name']}"
                try:
                    await courier.fetch(line.member.remote, None, [name], embeddings_dir(Path(self._cache)))
                    await courier.remove(line.member.remote, name)
                except UNREACHED as error:
                    message = {"type": "gone", "why": _why(f"{message['name']} could not be copied", error)}
            if message["type"] == "error":
                message = {**message, "message": f"node {line.member.node}: {message['message']}"}
            if number in self._children:
                self._say(number, message)

    def _say(self, number: int, message: Message) -> None:
        self._send({"type": "child", "id": number, "message": message})


class _Line:
    """Send a message to one child."""

    def __init__(self, member: Member) -> None:
        self.member, self.key = member, ""
        self.orders: asyncio.Queue[Json] = asyncio.Queue()
        self.replies: asyncio.Queue[Message] = asyncio.Queue()

    def is_far(self, cache_dir: str) -> bool:
        """Return whether its node has another cache."""
        return bool(self.member.about["cache_dir"] != cache_dir)
