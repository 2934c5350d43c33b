"""The trials on all agents, by number: which agent runs which, what passes between trial and scheduler. No Ray."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from saebench.executors.ray.courier import Budget
from saebench.executors.ray.lives import Life
from saebench.executors.ray.member import Member
from saebench.executors.ray.wire import Json


class Running:
    """See the module. `send` takes messages to the scheduler, `spawn` runs a trial's life beside the others."""

    def __init__(
        self, send: Callable[[Json], None], spawn: Callable[[Coroutine[Any, Any, None]], object], budget: Budget
    ) -> None:
        self._send, self._spawn, self._budget = send, spawn, budget
        self._lives: dict[int, Life] = {}

    def start(self, member: Member, order: Json) -> None:
        """Start a trial on an agent, which may have been lost or reclaimed since the scheduler chose it."""
        number = order["number"]
        life = self._lives[number] = Life(member, order, self._send_of(number), self._budget)
        if not member.alive:
            life.end("lost", f"node {member.node}: its agent is gone")
            return
        self._spawn(life.run())
        if member.draining:
            self._preempt(life)

    def order(self, order: Json) -> None:
        """Pass on answer or stop; ignored if the trial has ended."""
        life = self._lives.get(order["number"])
        if life is not None:
            life.order(order)

    def hear(self, member: Member, message: Json) -> None:
        """Take an agent's message about a trial; ignored if the trial has ended or runs elsewhere."""
        life = self._lives.get(message["number"])
        if life is not None and life.member is member:
            life.hear(message)

    def on(self, member: Member) -> list[Life]:
        """Return the trials of an agent."""
        return [life for life in self._lives.values() if life.member is member]

    def orphaned(self) -> list[int]:
        """Return the trials of lost agents whose end is not reported yet."""
        return [life.number for life in self._lives.values() if not life.member.alive]

    def preempt(self, member: Member) -> None:
        """Let the trials of an agent write checkpoints and leave: its node is reclaimed."""
        for life in self.on(member):
            self._preempt(life)

    def _preempt(self, life: Life) -> None:
        self._send({"type": "preempted", "number": life.number})
        life.order({"do": "stop", "number": life.number, "how": "leave"})

    def _send_of(self, number: int) -> Callable[[Json], None]:
        def send(message: Json) -> None:
            if message["type"] == "exit":
                self._lives.pop(number, None)
            self._send(message)

        return send
