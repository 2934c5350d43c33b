"""The actor on a node: a `Host` behind methods that take and return JSON text or bytes. Imports no Ray.

A method's error is part of its reply ({"error": text}): an exception would be pickled on its way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from saebench import telemetry
from saebench.errors import UserError
from saebench.executors import Executor
from saebench.executors.local import LocalExecutor
from saebench.executors.orphans import await_orphans
from saebench.executors.ray.host import Host, Lease
from saebench.executors.ray.pieces import Incoming, inside, list_files, read_piece
from saebench.executors.ray.wire import Json, slot_to_json
from saebench.runs.paths import SweepPaths, cache_dir, embeddings_dir
from saebench.sweep_config import RunConfig

STEPS_WAIT = 0.2
"""Seconds that training metrics wait for others to go with: nobody answers them."""


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
        """Start the executor; say what this node is and has."""
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

        return Host(executor, lease, heard, self._end)

    def _find_cache(self) -> Path:
        """The scheduler's cache, where it is visible under the same path; else the node's own."""
        theirs = Path(self._setup["cache_dir"])
        if self._setup["storage"] == "shared" or (theirs / self._setup["cache_nonce"]).exists():
            return theirs
        return cache_dir()

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
        """Messages after number `acknowledged`; waits up to `wait` seconds for the first."""
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
        """Numbered orders; see `Host.order`."""
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
        return "{}"

    # --- files -------------------------------------------------------------------------------------------------------

    async def settle(self, text: str) -> str:
        """Decide where trials work ({shared}), wait for workers of an earlier scheduler on this node, and list what a
        scratch folder of this sweep still holds ({trials: {number: files}})."""
        asked = json.loads(text)
        root = Path(asked["root"])
        shared = self._setup["storage"] != "streamed" and (root / asked["nonce"]).is_file()
        if self._setup["storage"] == "shared" and not shared:
            return json.dumps({"error": f"run.storage: shared: node {socket.gethostname()} does not see {root}"})
        try:
            scratch = _scratch_folder() / asked["sweep_id"]
        except OSError as error:
            return json.dumps({"error": f"node {socket.gethostname()}: scratch folder: {error}; set SAEBENCH_SCRATCH"})
        self._scratch = None if shared else scratch
        self._sweep = SweepPaths(root if shared else scratch)
        notes: list[str] = []
        trials = [trial for trial in self._sweep.trials() if shared or trial.number not in self._roots]
        await asyncio.to_thread(await_orphans, trials, notes.append, self._setup["grace"])
        found = {}
        if not shared:
            for trial in trials:
                newest = sorted(p.name for p in trial.checkpoint.glob("[0-9]*")) if trial.checkpoint.is_dir() else []
                found[trial.number] = {"checkpoint": newest[-1] if newest else "", "size": _size(trial.events)}
        return json.dumps({"shared": shared, "notes": notes, "trials": found})

    def _place_trial(self, attempt: Json) -> None:
        """A trial works where the scheduler says, or in the scratch folder."""
        if self._scratch is not None:
            attempt["root"] = str(self._root(attempt["number"]))
        self._roots[attempt["number"]] = Path(attempt["root"])

    def _root(self, number: int) -> Path:
        return self._roots.get(number) or self._sweep.trial(number).root

    async def reset(self, text: str) -> str:
        """Empty the scratch folder of a trial; nothing on a shared disk."""
        number = json.loads(text)["number"]
        if self._scratch is not None:
            await asyncio.to_thread(shutil.rmtree, self._root(number), True)
            self._root(number).mkdir(parents=True, exist_ok=True)
        return "{}"

    async def list_files(self, text: str) -> str:
        asked = json.loads(text)
        found = await asyncio.to_thread(list_files, self._place(asked), asked["names"])
        return json.dumps({"files": found})

    async def read(self, text: str) -> bytes:
        asked = json.loads(text)
        return read_piece(inside(self._place(asked), asked["name"]), asked["offset"])

    async def write(self, text: str, data: bytes) -> str:
        """A piece of a file; the last one has {size, crc}."""
        asked = json.loads(text)
        try:
            return json.dumps({"ok": self._write(asked, data)})
        except OSError as error:
            return json.dumps({"error": f"{asked['name']}: {error.strerror or error}"})

    def _write(self, asked: Json, data: bytes) -> bool:
        """A piece that arrives twice, because the reply to the first was lost, is written once."""
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
        return embeddings_dir(self._cache) if asked["number"] is None else self._root(asked["number"])


def versions() -> dict[str, str]:
    """Return the versions that must be the same on every machine of a sweep."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("saebench", "torch"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package).partition("+")[0]
    return found


def _scratch_folder() -> Path:
    """Return SAEBENCH_SCRATCH, else a folder of this user's among the temporary ones. Raises OSError if it is another
    user's."""
    if given := os.environ.get("SAEBENCH_SCRATCH"):
        return Path(given)
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"saebench-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.lstat().st_uid != user:
        raise PermissionError(errno.EPERM, "belongs to another user", str(folder))
    return folder


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
