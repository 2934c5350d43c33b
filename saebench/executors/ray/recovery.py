"""Prepare a node before the first trial of this start: wait for old workers, copy their files to the scheduler, copy
the embeddings to the node. No Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from saebench.executors.ray import courier
from saebench.executors.ray.lives import UNREACHED
from saebench.executors.ray.member import Member
from saebench.executors.ray.remote import ask
from saebench.executors.ray.setup import Setup
from saebench.executors.ray.wire import Json
from saebench.runs.paths import SweepPaths, embeddings_dir


class Recovery:
    """The sweep's location (`begin`), and the preparation of a node for it (`prepare`)."""

    def __init__(self, setup: Setup, say: Callable[[str], None]) -> None:
        self._setup, self._say = setup, say
        self._sweep: Json = {}
        self._begun, self._bringing = asyncio.Event(), asyncio.Lock()
        self._first = True
        self._copying: dict[tuple[str, str], asyncio.Lock] = {}
        """A lock for each node and folder of a cache: its agents share the copy."""

    def begin(self, sweep: Json) -> None:
        """sweep: {root, nonce, sweep_id, cache_keys}."""
        self._sweep = sweep
        self._begun.set()

    def end(self) -> None:
        """Trials run from now on: files that later agents find are not of an earlier start."""
        self._first = False

    async def prepare(self, member: Member, orphaned: Callable[[], Sequence[int]]) -> None:
        """Prepare a node. `orphaned`: trials of lost agents, whose workers may still be on this node. Raises
        RefusedError, UnreachableError, LostError."""
        await self._begun.wait()
        first, sweep, grace = self._first, self._sweep, self._setup.run.grace
        asked = {name: sweep[name] for name in ("root", "sweep_id", "nonce")}
        numbers = None if first else list(orphaned())
        found = await ask(member.remote, "recover", grace + courier.PATIENCE, **asked, numbers=numbers)
        member.shared = found["shared"]
        for note in found["notes"]:
            self._say(f"node {member.node}: {note}")
        if first:
            async with self._bringing:  # agents of one node have one scratch folder
                await self._bring(member, {int(number): one for number, one in found["trials"].items()})
        member.recovered_at = asyncio.get_running_loop().time()
        if member.about["cache_dir"] != self._setup.cache_dir:
            for key in sweep["cache_keys"]:
                await self._copy_entry(member, key)

    async def _bring(self, member: Member, trials: dict[int, Json]) -> None:
        """Copy from a scratch folder what the sweep's directory lacks: records, newer checkpoints, results."""
        paths = SweepPaths(Path(self._sweep["root"]))
        for number in sorted(trials):
            trial, theirs = paths.trial(number), trials[number]
            if not trial.config.is_file():
                continue
            with contextlib.suppress(*UNREACHED):
                if not await courier.fetch_tail(member.remote, number, theirs["size"], trial):
                    continue
                newest = max((place.name for place in trial.checkpoint.glob("[0-9]*")), default="")
                if theirs["checkpoint"] > newest:
                    await courier.fetch_checkpoint(member.remote, number, theirs["checkpoint"], trial)
                    self._say(f"trial {number:04d}: checkpoint {theirs['checkpoint']} brought from {member.node}")
                await courier.fetch(member.remote, number, ["sae", trial.evaluation.name], trial.root)
                await ask(member.remote, "forget", courier.PATIENCE, number=number)

    async def _copy_entry(self, member: Member, key: str) -> None:
        place = (member.remote.node_id or member.node, member.about["cache_dir"])
        async with self._copying.setdefault(place, asyncio.Lock()):
            sent = await courier.push_entry(member.remote, embeddings_dir(Path(self._setup.cache_dir)), key)
        if sent:
            self._say(f"node {member.node}: {sent / 1e6:,.1f} MB of embeddings copied")
