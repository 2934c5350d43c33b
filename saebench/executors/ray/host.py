"""An executor on its node, in a thread of its own: orders by sequence number, messages until acknowledged, a lease.

No Ray: `agent.py` puts it behind an actor, tests call it directly.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from saebench.executors import Executor, ExitMessage
from saebench.executors.ray.wire import Json, attempt_from_json, message_to_json
from saebench.runs.events import Verdict

POLL = 0.5
"""Seconds between two checks of the lease."""
FIRST_POLL = 120.0
"""Seconds that an agent lives without a first poll: its scheduler may have died while it started."""


class Lease:
    """The right to let trials run: it ends `seconds` after the last poll. times: of `clock`."""

    def __init__(self, seconds: float, grace: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self.grace, self._clock = seconds, grace, clock
        self._renewed = clock() + max(0.0, FIRST_POLL - seconds)
        self._ended: float | None = None

    def renew(self) -> bool:
        """Renew the lease after a poll; return False if it had already ended, which is final."""
        if not self.has_ended():
            self._renewed = self._clock()
        return self._ended is None

    def has_ended(self) -> bool:
        """Return whether the trials have to stop."""
        if self._ended is None and self._clock() - self._renewed > self.seconds:
            self._ended = self._clock()
        return self._ended is not None

    def grace_is_over(self) -> bool:
        """Return whether the trials' time to stop is over."""
        return self._ended is not None and self._clock() - self._ended > self.grace


class Host:
    """Runs `executor` until it is closed or its lease ends. Called in its thread: `heard` if there are messages,
    `ended` once if it has ended by itself, `other` with orders that are not about trials."""

    def __init__(
        self,
        executor: Executor,
        lease: Lease,
        heard: Callable[[], None],
        ended: Callable[[], None],
        other: Callable[[Json], None] = lambda _: None,
    ) -> None:
        self.executor, self.lease, self._other = executor, lease, other
        self._heard, self._ended = heard, ended
        self._lock = threading.Lock()
        self._orders: deque[Json] = deque()
        self._last_order = 0
        self._messages: deque[tuple[int, Json]] = deque()
        self._count = 0
        self._running: set[int] = set()
        self._leaving = self._closing = False
        self._thread = threading.Thread(target=self._run, name="host", daemon=True)
        self._thread.start()

    # --- for the caller's thread -------------------------------------------------------------------------------------

    def order(self, number: int, orders: list[Json]) -> None:
        """Take orders number, number + 1, ...; those taken before are ignored: a call whose reply was lost is
        repeated."""
        with self._lock:
            for at, order in enumerate(orders, number):
                if at > self._last_order:
                    self._last_order = at
                    self._orders.append(order)
        self.executor.wake()

    def take(self, acknowledged: int) -> list[tuple[int, Json]]:
        """Return all messages after number `acknowledged` and forget those up to it; renews the lease."""
        self.lease.renew()
        with self._lock:
            while self._messages and self._messages[0][0] <= acknowledged:
                self._messages.popleft()
            return list(self._messages)

    def has_news(self, acknowledged: int) -> bool:
        """Return whether there is a message after number `acknowledged`."""
        with self._lock:
            return bool(self._messages) and self._messages[-1][0] > acknowledged

    def put(self, message: Json) -> None:
        """Number a message and keep it until it is acknowledged."""
        with self._lock:
            self._count += 1
            self._messages.append((self._count, message))
        self._heard()

    def close(self) -> None:
        """Kill running trials."""
        self._closing = True
        self.executor.wake()
        self._thread.join()

    # --- its own thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._closing:
            for message in self.executor.poll(POLL):
                if isinstance(message, ExitMessage):
                    self._running.discard(message.number)
                self.put(message_to_json(message))
            while (order := self._next_order()) is not None:
                self._obey(order)
            if self.lease.has_ended() and self._has_left():
                break
        self.executor.close()
        if not self._closing:
            self._ended()

    def _next_order(self) -> Json | None:
        with self._lock:
            return self._orders.popleft() if self._orders else None

    def _has_left(self) -> bool:
        if not self._leaving:
            self._leaving = True
            for number in self._running:
                self.executor.stop(number, "leave")
        return not self._running or self.lease.grace_is_over()

    def _obey(self, order: Json) -> None:
        if order["do"] == "child":
            self._other(order)
            return
        number = order["number"]
        if order["do"] == "answer":
            self.executor.answer(number, Verdict(order["verdict"]))
        elif order["do"] == "stop":
            self.executor.stop(number, order["how"])
        elif order["do"] == "start" and not self._leaving:
            self._start(order)

    def _start(self, order: Mapping[str, Any]) -> None:
        attempt = attempt_from_json(order["attempt"])
        slot = next(slot for slot in self.executor.slots if slot.id == order["slot"])
        try:
            self.executor.start(attempt, replace(slot, memory_fraction=order["memory_fraction"]))
        except (OSError, RuntimeError) as error:
            self.put(message_to_json(ExitMessage(attempt.number, "crash", str(error))))
            return
        self._running.add(attempt.number)
