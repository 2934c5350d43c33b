"""All agents of a sweep, in the bridge: asked for, settled, followed, replaced, given up. No Ray.

What it tells the scheduler (`send`): joined (an agent, its slots), ready (its slots may be used), gone (they may not),
event, exit, note, settled, refused (nothing can run: one line).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from saebench.errors import PreflightError
from saebench.executors.ray import courier
from saebench.executors.ray.agent import versions
from saebench.executors.ray.courier import Budget
from saebench.executors.ray.lives import UNREACHED, Life
from saebench.executors.ray.member import Member
from saebench.executors.ray.remote import RefusedError, Remote, ask
from saebench.executors.ray.shares import Node, Share, divide, kind_of
from saebench.executors.ray.wire import Json
from saebench.runs.paths import SweepPaths, embeddings_dir
from saebench.sweep_config import RunConfig

WATCH = 5.0
"""Seconds between two looks at the nodes."""
RETURN = 10.0
"""Seconds after which a lost agent is asked for again where its node is still there."""
FIRST = 25.0
"""Seconds that a start waits for the first agent."""


class Cluster(Protocol):
    """The part of `cluster.RayCluster` that is used here."""

    def nodes(self) -> list[Node]: ...
    def create(self, share: Share, setup: str) -> Remote: ...


@dataclass(frozen=True)
class Setup:
    """What an agent and its trials are told; `settings` are JSON."""

    run: RunConfig
    cache_dir: str
    target: str
    lease: float

    def for_agent(self, share: Share, epoch: str, nonce: str) -> str:
        """Return the agent's `setup`: a local executor with the share's slots."""
        local = {
            "executor": "local",
            "devices": "auto" if share.gpus else "cpu",
            "per_device": share.slots,
            "threads": share.threads,
        }
        run = self.run.model_copy(update=local).model_dump(mode="json")
        return json.dumps(
            {
                "run": run,
                "cache_dir": self.cache_dir,
                "cache_nonce": nonce,
                "target": self.target,
                "lease": self.lease,
                "grace": self.run.grace,
                "storage": self.run.storage,
                "epoch": epoch,
            }
        )


class Fleet:
    """See the module. All methods run in the bridge's loop."""

    def __init__(self, cluster: Cluster, setup: Setup, send: Callable[[Json], None]) -> None:
        self._cluster, self._setup, self._send = cluster, setup, send
        self._budget = Budget(setup.run.transfer_mbps * 1e6)
        self._members: dict[int, Member] = {}
        self._lives: dict[int, Life] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sweep: Json | None = None
        self._settling = asyncio.Event()
        self._entries: dict[tuple[str, str], asyncio.Lock] = {}
        self._names: dict[str, str] = {}
        self._away: set[str] = set()
        """Draining nodes."""
        self._kind = "cpu"
        self._count = 0
        self._nonce = Path(setup.cache_dir) / f".nonce-{uuid.uuid4().hex[:12]}"

    # --- agents ------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Ask for the agents and wait for the first. Raises PreflightError."""
        with contextlib.suppress(OSError):
            self._nonce.parent.mkdir(parents=True, exist_ok=True)
            self._nonce.touch()
        nodes = await self._nodes()
        self._kind = kind_of(self._setup.run, nodes)
        shares = divide(self._setup.run, nodes, self._kind)
        if not shares:
            there = ", ".join(f"{node.name}: {node.cpus} CPUs" for node in nodes) or "no node"
            raise PreflightError(f"run.executor: ray: no node has room for a trial ({there})")
        self._threads = shares[0].threads
        members = [self._create(share) for share in shares]
        end = asyncio.get_running_loop().time() + FIRST
        while not all(member.about or not member.alive for member in members if member.remote.node_id):
            if asyncio.get_running_loop().time() > end:
                break
            await asyncio.sleep(0.05)
        if not any(member.about and member.alive for member in self._members.values()):
            why = next((m.about["error"] for m in members if "error" in m.about), f"no agent within {FIRST:g} s")
            raise PreflightError(f"run.address: {why}")
        self._start(self._watch())

    def _create(self, share: Share) -> Member:
        self._count += 1
        epoch = uuid.uuid4().hex
        remote = self._cluster.create(share, self._setup.for_agent(share, epoch, self._nonce.name))
        member = Member(
            self._count, remote, epoch, self._names.get(share.node_id, ""), self._setup.lease, self._deliver
        )
        self._members[member.number] = member
        self._start(self._live(member, share))
        return member

    async def _live(self, member: Member, share: Share) -> None:
        following: asyncio.Task[None] | None = None
        try:
            about = await self._described(member)
            member.node = member.node or about["host"]
            if (ours := versions()) != about["versions"]:
                raise RefusedError(f"node {member.node} has {about['versions']}, this machine {ours}")
            following = asyncio.create_task(member.follow())
            member.about = about
            self._send({"type": "joined", "agent": member.number, "slots": self._slots(member, share)})
            preparing = asyncio.create_task(self._prepare(member))
            await asyncio.wait({following, preparing}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                preparing.cancel()
            else:
                await preparing
                self._send({"type": "ready", "agent": member.number, "shared": member.shared})
            await following
        except RefusedError as error:
            member.alive, member.about = False, {"error": str(error)}
            member.remote.kill()
            self._say(f"node {member.node or '?'}: {error}")
        except UNREACHED as error:
            await self._lost(member, share, str(error))
        finally:
            if following is not None:
                following.cancel()

    async def _described(self, member: Member) -> Json:
        while True:  # one that waits for room has no reply for hours
            with contextlib.suppress(TimeoutError):
                return await ask(member.remote, "describe", 3600.0)

    def _slots(self, member: Member, share: Share) -> list[Json]:
        found = []
        for slot in member.about["slots"]:
            fraction = slot["memory_fraction"]
            if 0 < share.gpus < 1:
                fraction = round(0.95 * share.gpus, 4)
            found.append(
                slot
                | {
                    "id": 1000 * member.number + slot["id"],
                    "device": f"{member.node}/{slot['device']}",
                    "name": f"{member.node} {slot['name']}",
                    "node": member.node,
                    "memory_fraction": fraction,
                }
            )
        return found

    # --- a sweep's directory and embeddings --------------------------------------------------------------------------

    async def settle(self, sweep: Json) -> None:
        """Learn where the sweep is; bring what agents' nodes still have of it, then let trials start."""
        self._sweep = sweep
        self._settling.set()
        members = [m for m in self._members.values() if m.alive and m.about]
        while any(m.alive and m.settled_at is None for m in members):
            await asyncio.sleep(0.05)
        refused = [m.about["error"] for m in members if "error" in m.about]
        if refused and not any(m.alive for m in members):
            self._send({"type": "refused", "text": refused[0]})
        self._send({"type": "settled"})

    async def _prepare(self, member: Member) -> None:
        """Before its slots are used: no old worker is left on its node, and the embeddings are there."""
        await self._settling.wait()
        assert self._sweep is not None
        sweep = self._sweep
        grace = self._setup.run.grace
        asked = {name: sweep[name] for name in ("root", "sweep_id", "nonce")}
        found = await ask(member.remote, "settle", grace + 60.0, **asked)
        member.shared = found["shared"]
        for note in found["notes"]:
            self._say(f"node {member.node}: {note}")
        if not sweep["settled"]:
            await self._bring(member, {int(number): one for number, one in found["trials"].items()})
        member.settled_at = asyncio.get_running_loop().time()
        if sweep["cache_key"] is not None and member.about["cache_dir"] != self._setup.cache_dir:
            place = (member.remote.node_id or member.node, member.about["cache_dir"])
            async with self._entries.setdefault(place, asyncio.Lock()):
                sent = await courier.push_entry(
                    member.remote, embeddings_dir(Path(self._setup.cache_dir)), sweep["cache_key"]
                )
            if sent:
                self._say(f"node {member.node}: {sent / 1e6:,.1f} MB of embeddings copied")

    async def _bring(self, member: Member, trials: dict[int, Json]) -> None:
        """Copy what a scratch folder has beyond the sweep's directory: records, newer checkpoints, results."""
        assert self._sweep is not None
        paths = SweepPaths(Path(self._sweep["root"]))
        for number in sorted(trials):
            trial, theirs = paths.trial(number), trials[number]
            if not trial.config.is_file():
                continue
            with contextlib.suppress(*UNREACHED):
                if not await courier.fetch_tail(member.remote, number, theirs["size"], trial):
                    continue
                newest = max((p.name for p in trial.checkpoint.glob("[0-9]*")), default="")
                if theirs["checkpoint"] > newest:
                    await courier.fetch_checkpoint(member.remote, number, theirs["checkpoint"], trial)
                    self._say(f"trial {number:04d}: checkpoint {theirs['checkpoint']} brought from {member.node}")
                await courier.fetch(member.remote, number, ["sae", trial.evaluation.name], trial.root)

    # --- trials ------------------------------------------------------------------------------------------------------

    def start(self, order: Json) -> None:
        """Start a trial on the agent of its slot."""
        number, member = order["number"], self._members[order["slot"] // 1000]
        order = {**order, "do": "start", "slot": order["slot"] % 1000}
        life = self._lives[number] = Life(member, order, self._send_of(number), self._budget)
        if not member.alive:
            life.end("lost", f"node {member.node}: its agent is gone")
            return
        self._start(life.run())

    def order(self, order: Json) -> None:
        """answer or stop; passed over when the trial is over."""
        life = self._lives.get(order["number"])
        if life is not None:
            life.order(order)

    def _send_of(self, number: int) -> Callable[[Json], None]:
        def send(message: Json) -> None:
            if message["type"] == "exit":
                self._lives.pop(number, None)
            self._send(message)

        return send

    def _deliver(self, member: Member, message: Json) -> None:
        life = self._lives.get(message.get("number", -1))
        if life is not None and life.member is member:
            life.hear(message)
        elif message["type"] == "note":
            self._say(f"node {member.node}: {message['text']}")

    # --- loss --------------------------------------------------------------------------------------------------------

    async def _lost(self, member: Member, share: Share, why: str) -> None:
        """An agent is gone. Where others might see what its trials still write, wait until they must have left."""
        member.alive = False
        self._send({"type": "gone", "agent": member.number})
        self._say(f"node {member.node}: its agent is lost: {why}")
        member.remote.kill()
        lives = [life for life in self._lives.values() if life.member is member]
        self._start(self._return(share))
        if member.shared and lives:
            await self._until_they_left(member)
        for life in lives:
            life.end("lost", f"node {member.node}: {why}")

    async def _until_they_left(self, member: Member) -> None:
        """Until another agent on the node has seen to it, or lease and grace have passed."""
        loop, died = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        end = member.polled_at + self._setup.lease + self._setup.run.grace
        while loop.time() < end:
            beside = [m for m in self._members.values() if m.remote.node_id == member.remote.node_id]
            if any(m.settled_at is not None and m.settled_at > died for m in beside):
                return
            await asyncio.sleep(0.2)

    async def _return(self, share: Share) -> None:
        """Ask for an agent in place of a lost one: on its node where that is still there, else wherever there is room
        if a number of agents was asked for."""
        await asyncio.sleep(min(RETURN, self._setup.lease))
        there = {node.id for node in await self._nodes() if not node.draining}
        if share.node_id in there:
            self._create(share)
        elif self._setup.run.agents != "auto":
            self._create(Share("", share.cpus, share.gpus, share.slots, share.threads))

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def _nodes(self) -> list[Node]:
        nodes = await asyncio.to_thread(self._cluster.nodes)
        self._names |= {node.id: node.name for node in nodes}
        return nodes

    async def _watch(self) -> None:
        """New nodes get agents; those about to go are left in time."""
        known = {node.id for node in await self._nodes()}
        while True:
            await asyncio.sleep(WATCH)
            try:
                nodes = await asyncio.wait_for(self._nodes(), 30)
            except TimeoutError:
                continue
            for node in nodes:
                if node.draining and node.id not in self._away:
                    self._drain(node)
            new = [node for node in nodes if node.id not in known and not node.draining]
            known |= {node.id for node in new}
            if self._setup.run.agents == "auto":
                run = self._setup.run.model_copy(update={"threads": self._threads})
                for share in divide(run, new, self._kind):
                    self._create(share)

    def _drain(self, node: Node) -> None:
        self._away.add(node.id)
        self._say(f"node {node.name}: is taken back by the cluster; its trials leave")
        for member in self._members.values():
            if member.remote.node_id == node.id and member.alive:
                self._send({"type": "gone", "agent": member.number})
                for life in self._lives.values():
                    if life.member is member:
                        self._send({"type": "preempted", "number": life.number})
                        life.order({"do": "stop", "number": life.number, "how": "leave"})

    # --- the end -----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Kill what runs and give the agents back."""
        for task in self._tasks:
            task.cancel()
        self._nonce.unlink(missing_ok=True)
        with contextlib.suppress(TimeoutError):
            closing = [ask(m.remote, "close", 10.0) for m in self._members.values() if m.alive and m.about]
            await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), 12)
        for member in self._members.values():
            member.remote.kill()

    def _say(self, text: str) -> None:
        self._send({"type": "note", "text": text})

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A task that raises is a defect: end the bridge with its traceback, and so the sweep, resumable."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            traceback.print_exception(error)
            sys.stderr.flush()
            os._exit(1)
