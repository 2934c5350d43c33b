"""A trial on an agent: which of its messages and files are passed to the scheduler, and when. No Ray.

If its node does not see the sweep's directory, its files are copied: a `done` or `left` event is passed on once its
files have arrived; checkpoints are copied during training, within the budget.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from pathlib import Path

from saebench.executors.ray import courier
from saebench.executors.ray.courier import Budget
from saebench.executors.ray.member import Member
from saebench.executors.ray.remote import LostError, RefusedError, UnreachableError, ask
from saebench.executors.ray.wire import Json, event_of
from saebench.runs.events import Event
from saebench.runs.paths import TrialPaths

CHECKPOINT_SECONDS = 60.0
"""Least time between two copies of a trial's checkpoints while it trains."""
LOG_SECONDS = 10.0
"""Least time between two copies of a trial's log."""
UNREACHED = (LostError, RefusedError, UnreachableError, OSError)


class Life:
    """One attempt on one agent."""

    def __init__(self, member: Member, order: Json, send: Callable[[Json], None], budget: Budget) -> None:
        self.member, self.number = member, int(order["number"])
        self._order, self._send, self._budget = order, send, budget
        self._trial = TrialPaths(Path(order["attempt"]["root"]))
        self._messages: asyncio.Queue[Json] = asyncio.Queue()
        self._copying: asyncio.Task[None] | None = None
        self._copied_at = self._logged_at = asyncio.get_running_loop().time()
        self._log_offset = 0
        self._killed = self._over = False
        self._later: list[Json] | None = []
        """Orders that wait until the start has been sent; None from then on."""

    async def run(self) -> None:
        """Start the trial and pass its messages on, the exit last."""
        if not await self._start():
            return
        while not self._over:
            message = await self._messages.get()
            if not self._over:
                await self._pass_on(message)

    def hear(self, message: Json) -> None:
        """Take a message of the agent about this trial."""
        self._messages.put_nowait(message)

    def order(self, order: Json) -> None:
        """Answer or stop the trial."""
        self._killed = self._killed or order.get("how") == "kill"
        if self._later is None:
            self.member.order(order)
        else:
            self._later.append(order)

    def end(self, kind: str, detail: str) -> None:
        """Report the exit of an attempt that sends nothing more; only once."""
        if not self._over:
            self._over = True
            self._messages.put_nowait({"type": "over"})  # wakes `run`
            if self._copying is not None:
                self._copying.cancel()
            kind, detail = ("killed", "killed") if self._killed else (kind, detail)
            self._send({"type": "exit", "number": self.number, "kind": kind, "detail": detail})

    async def _start(self) -> bool:
        try:
            if not self.member.shared:
                await courier.push_trial(
                    self.member.remote, self.number, self._order["attempt"]["attempt"], self._trial
                )
        except RefusedError as error:
            self.end("no_space" if "No space" in str(error) else "crash", f"node {self.member.node}: {error}")
            return False
        except (LostError, UnreachableError, OSError) as error:
            self.end("lost", f"node {self.member.node}: {error}")
            return False
        if self._killed:
            self.end("killed", "killed")
            return False
        later, self._later = self._later or [], None
        for order in (self._order, *later):
            self.member.order(order)
        return True

    async def _pass_on(self, message: Json) -> None:
        if message["type"] == "exit":
            await self._finish(message)
            return
        try:
            if not self.member.shared:
                await self._carry(event_of(message))
        except UNREACHED as error:
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            self.member.order({"do": "stop", "number": self.number, "how": "kill"})
            self.end("no_space" if full else "lost", f"node {self.member.node}: {error}")
        if not self._over:
            self._send(message)

    async def _finish(self, message: Json) -> None:
        if not self.member.shared:
            await self._stop_copying()
            with contextlib.suppress(*UNREACHED):
                await self._fetch_log()
                await ask(self.member.remote, "forget", courier.PATIENCE, number=self.number)
        if not self._over:
            self._over = True
            self._send(message)

    async def _carry(self, event: Event) -> None:
        """Copy the files that an event refers to."""
        loop = asyncio.get_running_loop()
        if event.type == "checkpoint" and (self._copying is None or self._copying.done()):
            if loop.time() - self._copied_at >= CHECKPOINT_SECONDS:
                self._copied_at = loop.time()
                self._copying = asyncio.create_task(self._copy(str(event.info.get("name", ""))))
        elif event.type in ("done", "left"):
            await self._fetch_results(event)
        elif loop.time() - self._logged_at >= LOG_SECONDS:
            self._logged_at = loop.time()
            with contextlib.suppress(*UNREACHED):
                await self._fetch_log()

    async def _copy(self, name: str) -> None:
        with contextlib.suppress(*UNREACHED):
            await courier.fetch_checkpoint(self.member.remote, self.number, name, self._trial, self._budget)

    async def _stop_copying(self) -> None:
        if self._copying is not None:
            self._copying.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._copying

    async def _fetch_results(self, event: Event) -> None:
        """Copy SAE and evaluation after `done`, the newest checkpoint after `left`."""
        await self._stop_copying()
        remote, number, trial = self.member.remote, self.number, self._trial
        if event.type == "left" and event.info.get("why") != "prune":
            await courier.fetch_newest(remote, number, trial)
        else:
            await courier.fetch(remote, number, ["sae", trial.evaluation.name], trial.root)

    async def _fetch_log(self) -> None:
        self._log_offset = await courier.fetch_log(self.member.remote, self.number, self._log_offset, self._trial)
