"""All agents of a sweep, in the bridge: requested, recovered, followed, replaced, given up. No Ray.

Messages to the scheduler (`send`): joined (an agent, its slots), ready (its slots may be used), gone (no longer),
event, exit, note, recovered, refused (nothing can run: one line).
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench.errors import PreflightError
from saebench.executors.ray.agent import versions
from saebench.executors.ray.courier import Budget
from saebench.executors.ray.demand import Demand
from saebench.executors.ray.encoding import Encoding
from saebench.executors.ray.lives import UNREACHED
from saebench.executors.ray.member import Member, slots_of
from saebench.executors.ray.nodes import Cluster, Nodes
from saebench.executors.ray.recovery import Recovery
from saebench.executors.ray.remote import RefusedError, ask
from saebench.executors.ray.running import Running
from saebench.executors.ray.setup import Setup
from saebench.executors.ray.shares import Node, Share, divide, kind_of
from saebench.executors.ray.tasks import Tasks
from saebench.executors.ray.wire import Json

RETURN = 10.0
"""Seconds after which a lost agent is requested again if its node is still alive."""
FIRST = 60.0
"""Seconds that a start waits for the first agent."""


class Fleet:
    """See the module. All methods run in the bridge's loop."""

    def __init__(self, cluster: Cluster, setup: Setup, send: Callable[[Json], None]) -> None:
        self._cluster, self._setup, self._send = cluster, setup, send
        self._tasks = Tasks()
        self._running = Running(send, self._tasks.start, Budget(setup.run.transfer_mbps * 1e6))
        self._members: dict[int, Member] = {}
        self._following: dict[int, asyncio.Task[Any]] = {}
        """What follows each agent."""
        self._demand = Demand()
        self._nodes, self._recovery = Nodes(cluster), Recovery(setup, self._say)
        self._encoding = Encoding(setup.cache_dir, send, self._tasks.start)
        self._kind = "cpu"
        self._count = 0
        self._nonce = Path(setup.cache_dir) / f".nonce-{uuid.uuid4().hex[:12]}"

    # --- agents ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Request the agents and wait for the first. Raises PreflightError."""
        with contextlib.suppress(OSError):
            self._nonce.parent.mkdir(parents=True, exist_ok=True)
            self._nonce.touch()
        nodes = await self._nodes.first_look()
        self._kind = kind_of(self._setup.run, nodes)
        shares = divide(self._setup.run, nodes, self._kind)
        if not shares:
            there = ", ".join(f"{node.name}: {node.cpus} CPUs" for node in nodes) or "no node"
            raise PreflightError(
                f"run.executor: ray: no node has room for a trial ({there}); lower run.threads, or start a machine: "
                f"ray start --address={self._setup.run.address or 'HOST:PORT'}"
            )
        self._threads = shares[0].threads
        members = [self._create(share) for share in shares]
        end = asyncio.get_running_loop().time() + FIRST
        while not all(member.about or not member.alive for member in members if member.remote.node_id):
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.05)
        if not any(member.about and member.alive for member in self._members.values()):
            there = ", ".join(f"{node.name}: {node.cpus} CPUs, {node.gpus:g} GPUs" for node in nodes)
            waited = f"no agent started within {FIRST:g} s: is something else running there? ({there})"
            why = next((m.about["error"] for m in members if "error" in m.about), waited)
            raise PreflightError(f"run.address: {why}")
        self._tasks.start(self._nodes.watch(self._joined, self._drain))

    def _create(self, share: Share) -> Member:
        self._count += 1
        epoch = uuid.uuid4().hex
        remote = self._cluster.create(share, self._setup.for_agent(share, epoch, self._nonce.name))
        node = self._nodes.names.get(share.node_id, "")
        member = Member(self._count, share, remote, epoch, node, self._setup.lease, self._deliver)
        self._members[member.number] = member
        self._following[member.number] = self._tasks.start(self._live(member))
        return member

    async def _live(self, member: Member) -> None:
        following: asyncio.Task[None] | None = None
        preparing: asyncio.Task[None] | None = None
        try:
            about = await self._described(member)
            member.node = member.node or about["host"]
            if (ours := versions()) != about["versions"]:
                raise RefusedError(f"node {member.node} has {about['versions']}, this machine {ours}; install the same")
            if member.share.gpus and not all(slot["device"].startswith("cuda") for slot in about["slots"]):
                raise RefusedError(f"node {member.node}: Ray assigns a GPU there, but torch finds none")
            following = asyncio.create_task(member.follow())
            member.about = about
            self._send({"type": "joined", "agent": member.number, "slots": slots_of(member)})
            preparing = asyncio.create_task(self._recovery.prepare(member, self._running.orphaned))
            await asyncio.wait({following, preparing}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                await preparing
                self._send({"type": "ready", "agent": member.number, "shared": member.shared})
            await following
        except RefusedError as error:
            member.alive, member.about = False, {"error": str(error)}
            member.remote.kill()
            self._send({"type": "gone", "agent": member.number})
            self._say(f"node {member.node or '?'}: {error}")
        except UNREACHED as error:
            await self._lost(member, str(error))
        finally:
            for task in (following, preparing):
                if task is not None:
                    task.cancel()

    async def _described(self, member: Member) -> Json:
        while True:  # one that waits for room has no reply for hours
            with contextlib.suppress(TimeoutError):
                return await ask(member.remote, "describe", 3600.0)

    # --- a sweep's directory and embeddings --------------------------------------------------------------------------

    async def recover(self, sweep: Json) -> None:
        """Store the sweep's location, wait until every agent's node is recovered, and let trials start."""
        self._recovery.begin(sweep)
        members = [m for m in self._members.values() if m.alive and m.about]
        while any(m.alive and m.recovered_at is None for m in members):
            await asyncio.sleep(0.05)
        refused = [m.about["error"] for m in members if "error" in m.about]
        if refused and not any(m.alive for m in members):
            self._send({"type": "refused", "text": refused[0]})
        self._recovery.end()
        self._send({"type": "recovered"})

    # --- trials ------------------------------------------------------------------------------------------------------

    def start(self, order: Json) -> None:
        """Start a trial on the agent of its slot."""
        member, slot = self._members[order["slot"] // 1000], order["slot"] % 1000
        self._running.start(member, {**order, "do": "start", "slot": slot})

    def order(self, order: Json) -> None:
        """Pass on answer or stop; ignored if the trial has ended."""
        self._running.order(order)

    def encode(self, order: Json) -> None:
        """Pass on an order to an encoder."""
        self._encoding.order(order, self._members.get(order.get("agent", 0)))

    def _deliver(self, member: Member, message: Json) -> None:
        if message["type"] == "child":
            self._encoding.hear(message)
        elif message["type"] == "note":
            self._say(f"node {member.node}: {message['text']}")
        else:
            self._running.hear(member, message)

    # --- loss --------------------------------------------------------------------------------------------------------

    async def _lost(self, member: Member, why: str) -> None:
        """Handle the loss of an agent. If others could see what its trials still write, wait until these must have
        exited."""
        member.alive = False
        self._send({"type": "gone", "agent": member.number})
        self._say(f"node {member.node}: its agent is lost: {why}")
        member.remote.kill()
        self._encoding.lost(member)
        lives = self._running.on(member)
        self._tasks.start(self._return(member.share))
        self._regain()
        if member.shared and lives:
            await self._await_workers(member)
        for life in lives:
            life.end("lost", f"node {member.node}: {why}")

    async def _await_workers(self, member: Member) -> None:
        """Wait until another agent on the node has seen the workers exit, or lease and grace have passed."""
        loop, died = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        end = member.polled_at + self._setup.lease + self._setup.run.grace
        while loop.time() < end:
            beside = [m for m in self._members.values() if m.remote.node_id == member.remote.node_id]
            if any(m.recovered_at is not None and m.recovered_at > died for m in beside):
                return
            await asyncio.sleep(0.2)

    async def _return(self, share: Share) -> None:
        """Request an agent in place of a lost one: on its node if that is alive, else on any node if the spec gives a
        number of agents."""
        await asyncio.sleep(min(RETURN, self._setup.lease))
        there = {node.id for node in await self._nodes.look() if not node.draining}
        if share.node_id in there:
            self._create_if_needed(share)
        elif self._setup.run.agents != "auto":
            self._create_if_needed(replace(share, node_id=""))

    # --- more agents than trials -------------------------------------------------------------------------------------

    def set_demand(self, slots: int, give_back: Sequence[int]) -> None:
        """`slots` are needed and no more: give back these idle agents and those that have not joined; ask for agents
        again if slots are missing."""
        self._demand.slots = slots
        waiting = [m.number for m in self._members.values() if m.alive and not m.about]
        for member in [self._members[number] for number in (*give_back, *reversed(waiting))]:
            if member.alive and (member.number in give_back or self._demand.spare(self._there()) >= member.share.slots):
                self._give_back(member)
        self._regain()

    def _give_back(self, member: Member) -> None:
        member.alive = False
        self._following[member.number].cancel()
        member.remote.kill()
        if not self._demand.given_back:
            self._say("fewer trials left than slots: agents without a trial are given back to the cluster")
        self._demand.given_back.append(member.share)

    def _there(self) -> int:
        """Return the number of slots that agents have, or will have when they start."""
        return sum(m.share.slots for m in self._members.values() if m.alive and not m.draining)

    def _regain(self) -> None:
        missing = -self._demand.spare(self._there())
        while missing > 0 and self._demand.given_back:
            share = self._demand.given_back.pop()
            known = share.node_id in self._nodes.there
            missing -= self._create(share if known else replace(share, node_id="")).share.slots

    def _create_if_needed(self, share: Share) -> None:
        if self._demand.accepts(share, self._there()):
            self._create(share)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _joined(self, nodes: list[Node]) -> None:
        if self._setup.run.agents == "auto":
            run = self._setup.run.model_copy(update={"threads": self._threads})
            for share in divide(run, nodes, self._kind):
                self._create_if_needed(share)

    def _drain(self, node: Node) -> None:
        self._say(f"node {node.name}: the cluster reclaims it; its trials checkpoint and stop")
        for member in self._members.values():
            if member.remote.node_id == node.id and member.alive:
                member.draining = True
                self._send({"type": "gone", "agent": member.number})
                self._running.preempt(member)
        self._regain()

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Kill running trials and release the agents."""
        await self._tasks.cancel()
        self.forget()
        with contextlib.suppress(TimeoutError):
            closing = [ask(m.remote, "close", 10.0) for m in self._members.values() if m.alive and m.about]
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), 12)
        for member in self._members.values():
            member.remote.kill()

    def forget(self) -> None:
        """Remove the file by which agents recognise the scheduler's cache."""
        with contextlib.suppress(OSError):
            self._nonce.unlink()

    def _say(self, text: str) -> None:
        self._send({"type": "note", "text": text})
