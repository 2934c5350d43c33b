"""The actor on a node: a `Host` behind methods that take and return JSON text or bytes. Imports no Ray.

A method returns its error in the reply ({"error": text}): Ray would pickle an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import platform
import shutil
import socket
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from saebench import telemetry
from saebench.errors import UserError
from saebench.executors import Executor
from saebench.executors.local import LocalExecutor
from saebench.executors.orphans import await_orphans
from saebench.executors.ray import scratch
from saebench.executors.ray.encoding import Children
from saebench.executors.ray.host import Host, Lease
from saebench.executors.ray.pieces import Incoming, inside, list_files, read_piece
from saebench.executors.ray.wire import Json, slot_to_json
from saebench.runs.paths import SweepPaths, cache_dir, embeddings_dir
from saebench.sweep_config import RunConfig

STEPS_WAIT = 0.2
"""Seconds that training metrics wait to be sent in a batch; they need no answer."""


class Agent:
    """See the package. `setup`: JSON, made by `Fleet`."""

    def __init__(
        self, setup: str, make: Callable[..., Executor] = LocalExecutor, end: Callable[[], None] | None = None
    ) -> None:
        telemetry.disable()
        for name in ("OMP_NUM_THREADS", "RAY_AUTH_TOKEN"):  # a slot says it better; trials need no token
            os.environ.pop(name, None)
        self._setup: Json = json.loads(setup)
        self._make, self._end = make, end or (lambda: os._exit(0))
        self._host: Host | None = None
        self._roots: dict[int, Path] = {}
        self._incoming: dict[str, Incoming] = {}
        self._written: dict[str, bool] = {}
        self._scratch: Path | None = None
        self._news: asyncio.Event | None = None

    async def describe(self, _: str = "") -> str:
        """Start the executor; return a description of this node."""
        try:
            if self._host is None:
                self._host = self._start_host()
            return json.dumps(self._about())
        except Exception as error:
            line = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            return json.dumps({"error": line})

    def _start_host(self) -> Host:
        setup, loop = self._setup, asyncio.get_running_loop()
        self._news = news = asyncio.Event()
        self._cache = self._find_cache()
        executor = self._make(RunConfig.model_validate(setup["run"]), self._cache, setup["target"], fenced=True)
        lease = Lease(setup["lease"], setup["grace"])

        def heard() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closing
                loop.call_soon_threadsafe(news.set)

        host = Host(executor, lease, heard, self._end, lambda order: self._children.obey(order))
        self._children = Children(host.put)
        return host

    def _find_cache(self) -> Path:
        """Return the scheduler's cache if it is visible under the same path, else the node's own."""
        theirs, storage = Path(self._setup["cache_dir"]), self._setup["storage"]
        visible = storage == "shared" or (storage == "auto" and (theirs / self._setup["cache_nonce"]).exists())
        return theirs if visible else cache_dir()

    def _about(self) -> Json:
        assert self._host is not None
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": [slot_to_json(slot) for slot in self._host.executor.slots],
            "versions": versions(),
            "cache_dir": str(self._cache),
        }

    # --- messages and orders -----------------------------------------------------------------------------------------

    async def poll(self, text: str) -> str:
        """Return messages after number `acknowledged`; wait up to `wait` seconds for the first."""
        asked = json.loads(text)
        if self._host is None or self._news is None:
            return json.dumps({"messages": []})
        loop, news = asyncio.get_running_loop(), self._news
        end = loop.time() + asked["wait"]
        found = self._host.take(asked["acknowledged"])
        while not found and (left := end - loop.time()) > 0:
            news.clear()
            if not self._host.has_news(asked["acknowledged"]):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), left)
            found = self._host.take(asked["acknowledged"])
        if found and all(message.get("of") == "step" for _, message in found):
            await asyncio.sleep(STEPS_WAIT)
            found = self._host.take(asked["acknowledged"])
        return json.dumps({"epoch": self._setup["epoch"], "messages": found})

    async def order(self, text: str) -> str:
        """Take numbered orders; see `Host.order`."""
        asked = json.loads(text)
        if self._host is not None:
            for order in asked["orders"]:
                if order["do"] == "start":
                    self._place_trial(order["attempt"])
            self._host.order(asked["first"], asked["orders"])
        return "{}"

    async def close(self, _: str = "") -> str:
        """Kill the trials."""
        if self._host is not None:
            await asyncio.to_thread(self._host.close)
            await asyncio.to_thread(self._children.close)
        return "{}"

    # --- files -------------------------------------------------------------------------------------------------------

    async def recover(self, text: str) -> str:
        """Decide where trials work ({shared}), wait for workers of an earlier scheduler on this node, and list the
        files in a scratch folder of this sweep ({trials: {number: files}})."""
        asked = json.loads(text)
        root = Path(asked["root"])
        shared = self._setup["storage"] != "streamed" and (root / asked["nonce"]).is_file()
        if self._setup["storage"] == "shared" and not shared:
            unseen = f"run.storage: shared: node {socket.gethostname()} does not see {root}"
            return json.dumps({"error": f"{unseen}; mount it there, or set run.storage: streamed"})
        try:
            folder = scratch.base_folder() / asked["sweep_id"]
        except OSError as error:
            return json.dumps({"error": f"node {socket.gethostname()}: scratch folder: {error}; set SAEBENCH_SCRATCH"})
        self._scratch = None if shared else folder
        trials = SweepPaths(root).trials() if shared else scratch.trials_in(folder)
        found = await asyncio.to_thread(scratch.wanted, trials, asked["numbers"])
        notes: list[str] = []
        await asyncio.to_thread(await_orphans, found, notes.append, self._setup["grace"])
        kept = [] if shared else [scratch.kept(trial) for trial in found]
        self._roots |= {trial.number: trial.root for trial in found if not shared}  # of two attempts, the later one
        return json.dumps({"shared": shared, "notes": notes, "trials": {one["number"]: one for one in kept}})

    async def prepare(self, text: str) -> str:
        """Make an empty folder for an attempt in the scratch folder. Each attempt has its own, so that a worker of an
        earlier attempt, which may still run, cannot write into it."""
        asked = json.loads(text)
        if self._scratch is not None:
            root = SweepPaths(self._scratch / str(asked["attempt"])).trial(asked["number"]).root
            await asyncio.to_thread(shutil.rmtree, root, True)
            root.mkdir(parents=True)
            self._roots[asked["number"]] = root
        return "{}"

    async def forget(self, text: str) -> str:
        """Remove a trial from the scratch folder; the scheduler has copied all of it."""
        number = json.loads(text)["number"]
        if self._scratch is not None:
            for trial in scratch.trials_in(self._scratch):
                if trial.number == number:
                    await asyncio.to_thread(shutil.rmtree, trial.root, True)
        return "{}"

    def _place_trial(self, attempt: Json) -> None:
        """Return the directory of a trial: the scheduler's, or the folder that `prepare` made."""
        if self._scratch is None:
            self._roots[attempt["number"]] = Path(attempt["root"])
        attempt["root"] = str(self._roots[attempt["number"]])

    async def list_files(self, text: str) -> str:
        asked = json.loads(text)
        found = await asyncio.to_thread(list_files, self._place(asked), asked["names"])
        return json.dumps({"files": found})

    async def make_folder(self, text: str) -> str:
        asked = json.loads(text)
        inside(self._place(asked), asked["name"]).mkdir(parents=True, exist_ok=True)
        return "{}"

    async def remove(self, text: str) -> str:
        asked = json.loads(text)
        inside(self._place(asked), asked["name"]).unlink(missing_ok=True)
        return "{}"

    async def read(self, text: str) -> bytes:
        asked = json.loads(text)
        return read_piece(inside(self._place(asked), asked["name"]), asked["offset"])

    async def write(self, text: str, data: bytes) -> str:
        """Return a piece of a file; the last one has {size, crc}."""
        asked = json.loads(text)
        try:
            return json.dumps({"ok": self._write(asked, data)})
        except OSError as error:
            return json.dumps({"error": f"{asked['name']}: {error.strerror or error}"})

    def _write(self, asked: Json, data: bytes) -> bool:
        """Write a piece of a file; one that arrives twice, because the first reply was lost, is written once."""
        identity = asked["id"]
        if identity in self._written:
            return self._written[identity]
        if identity not in self._incoming:
            self._incoming[identity] = Incoming(inside(self._place(asked), asked["name"]))
        incoming = self._incoming[identity]
        if asked["offset"] == incoming.size:
            incoming.add(data)
        if "size" in asked:
            self._written[identity] = self._incoming.pop(identity).finish(asked["size"], asked["crc"])
        return self._written.get(identity, True)

    def _place(self, asked: Json) -> Path:
        return embeddings_dir(self._cache) if asked["number"] is None else self._roots[asked["number"]]


def versions() -> dict[str, str]:
    """Return the versions that must be the same on every machine of a sweep."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("saebench", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package).partition("+")[0]
    return found
