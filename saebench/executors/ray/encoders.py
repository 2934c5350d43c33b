"""Encoders on the nodes, as the scheduler uses them: children of `stores.encoder_pool` (see encoding.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from itertools import count

from saebench.errors import ExecutorLostError
from saebench.executors.ray.wire import Json
from saebench.stores.child_process import Child, Inbox, Launch, Message

ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
"""Environment of an encoder on one core (see `EncoderPool`)."""


class Encoders:
    """The scheduler's end. A thread passes messages of the bridge to `take` while there are children, because the
    caller waits for the encoders' replies."""

    def __init__(self, send: Callable[[Json], None], take: Callable[[float], object], wake: Callable[[], None]) -> None:
        self._send, self._take, self._wake = send, take, wake
        self._numbers = count(1)
        self._children: dict[int, _RemoteChild] = {}
        self._thread: threading.Thread | None = None

    def launch(self, agent: int, name: str, device: str, environment: Mapping[str, str]) -> Launch:
        """Return a place on an agent."""

        def start(_: str, name: str, environment: Mapping[str, str], inbox: Inbox) -> Child:
            return self._start(agent, name, environment, inbox)

        return Launch(name, device, environment, start)

    def _start(self, agent: int, name: str, environment: Mapping[str, str], inbox: Inbox) -> Child:
        number = next(self._numbers)
        child = self._children[number] = _RemoteChild(number, name, inbox, self._send, self._close)
        more = {"agent": agent, "name": name, "environment": dict(environment)}
        self._send({"op": "child", "what": "start", "id": number, **more})
        if self._thread is None:
            self._thread = threading.Thread(target=self._pump, name="encoders", daemon=True)
            self._thread.start()
        return child

    def hear(self, message: Json) -> None:
        """A message about a child."""
        child = self._children.get(message["id"])
        if child is not None:
            child.inbox.put((child, message["message"]))

    def _pump(self) -> None:
        try:
            while self._children:
                self._take(1.0)
        except ExecutorLostError as error:
            for child in list(self._children.values()):
                child.inbox.put((child, {"type": "gone", "why": str(error)}))

    def _close(self, number: int) -> None:
        self._children.pop(number, None)
        if not self._children and self._thread is not None:
            self._wake()
            self._thread.join()
            self._thread = None


class _RemoteChild:
    """See `Child`."""

    def __init__(
        self,
        number: int,
        name: str,
        inbox: Inbox,
        send: Callable[[Json], None],
        closed: Callable[[int], None],
    ) -> None:
        self.name, self.inbox = name, inbox
        self._number, self._send, self._closed = number, send, closed

    def send(self, message: Message) -> None:
        self._send({"op": "child", "what": "send", "id": self._number, "message": message})

    def close(self) -> None:
        self._send({"op": "child", "what": "close", "id": self._number})
        self._closed(self._number)
