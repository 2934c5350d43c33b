"""Copy files between the scheduler's disk and a node's, in pieces, outside the scheduler's loop. No Ray."""

from __future__ import annotations

import asyncio
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from saebench.executors.ray.pieces import PIECE, Incoming, inside, list_files, read_piece
from saebench.executors.ray.remote import Remote, UnreachableError, ask, ask_bytes
from saebench.executors.ray.wire import Json
from saebench.runs.durable import new_folder, sync
from saebench.runs.files import file_sum
from saebench.runs.paths import CHECKPOINT_STATE, TrialPaths
from saebench.stores.beside import beside
from saebench.stores.manifest import MANIFEST, Manifest

PATIENCE = 60.0
"""Seconds that one piece may take."""
TRIES = 3
"""How often files are fetched again if they changed meanwhile."""
KEPT = 2
"""Checkpoints kept of a trial, as trial/checkpoint.py does."""


class Budget:
    """Bytes per second for checkpoints of running trials; files of trials that have ended are not limited."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate, self._free_at = bytes_per_second, 0.0

    async def spend(self, size: int) -> None:
        """Wait until `size` bytes may be sent."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at)
        self._free_at = start + size / self._rate
        await asyncio.sleep(start - now)


async def fetch(
    remote: Remote, number: int | None, names: Sequence[str], root: Path, budget: Budget | None = None
) -> list[str]:
    """Copy files and folders of trial `number`, or (None) of the cache, to `root`; return their names. Raises
    UnreachableError if a file changed at every try or there is no reply, and LostError."""
    for _ in range(TRIES):
        listed = (await ask(remote, "list_files", PATIENCE, number=number, names=list(names)))["files"]
        if all([await _fetch_file(remote, number, file, root, budget) for file in listed]):
            return [file["name"] for file in listed]
    raise UnreachableError(f"{', '.join(names)}: changed while they were copied")


async def _fetch_file(remote: Remote, number: int | None, file: Json, root: Path, budget: Budget | None) -> bool:
    path = inside(root, file["name"])
    if path.is_file() and file_sum(path) == (file["size"], file["crc"]):
        return True
    incoming, offset = Incoming(path), 0
    try:
        while offset < file["size"]:
            if budget is not None:
                await budget.spend(min(PIECE, file["size"] - offset))
            data = await ask_bytes(remote, "read", PATIENCE, number=number, name=file["name"], offset=offset)
            if not data:
                break
            incoming.add(data)
            offset += len(data)
    except BaseException:
        incoming.drop()
        raise
    return incoming.finish(file["size"], file["crc"])


async def fetch_checkpoint(
    remote: Remote, number: int, name: str, trial: TrialPaths, budget: Budget | None = None
) -> bool:
    """Copy one checkpoint, under a temporary name until complete, and remove older ones; False if the node has removed
    it meanwhile."""
    place = trial.checkpoint / name
    if not name.isdigit() or place.exists():
        return name.isdigit()
    aside = trial.root / f".{name}.tmp"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        found = await fetch(remote, number, [f"checkpoint/{name}"], aside, budget)
        if not any(one.endswith(CHECKPOINT_STATE) for one in found):
            return False
        with new_folder(place) as new:
            for file in (aside / "checkpoint" / name).iterdir():
                file.replace(new / file.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in sorted(p for p in trial.checkpoint.iterdir() if p.name.isdigit())[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return True


async def fetch_log(remote: Remote, number: int, offset: int, trial: TrialPaths) -> int:
    """Append the trial's log on the node from `offset`; return the new offset."""
    while data := await ask_bytes(remote, "read", PATIENCE, number=number, name=trial.log.name, offset=offset):
        with trial.log.open("ab") as log:
            log.write(data)
        offset += len(data)
    return offset


async def fetch_tail(remote: Remote, number: int, size: int, trial: TrialPaths) -> bool:
    """Append the node's events that our record of the trial lacks; False if our record is not a prefix of the
    node's."""
    ours = trial.events.read_bytes() if trial.events.is_file() else b""
    theirs = b""
    while len(theirs) < size:
        data = await ask_bytes(remote, "read", PATIENCE, number=number, name=trial.events.name, offset=len(theirs))
        if not data:
            break
        theirs += data
    theirs = theirs[: theirs.rfind(b"\n") + 1]
    if not theirs.startswith(ours):
        return False
    if len(theirs) > len(ours):
        with trial.events.open("ab") as file:
            file.write(theirs[len(ours) :])
        sync(trial.events)
    return True


async def push(remote: Remote, number: int | None, root: Path, files: Sequence[Json]) -> None:
    """Copy files below `root` to the agent: of trial `number`, or (None) of its embedding cache. Raises
    UnreachableError, LostError, and RefusedError if the node cannot write them."""
    for file in files:
        path, identity = inside(root, file["name"]), uuid.uuid4().hex
        offset = 0
        while True:
            data = await asyncio.to_thread(read_piece, path, offset)
            last = offset + len(data) >= file["size"] or not data
            end = {"size": file["size"], "crc": file["crc"]} if last else {}
            await _write(remote, data, number=number, name=file["name"], offset=offset, id=identity, **end)
            offset += len(data)
            if last:
                break


async def make_folder(remote: Remote, name: str) -> None:
    """Make a folder of the node's cache."""
    await ask(remote, "make_folder", PATIENCE, number=None, name=name)


async def remove(remote: Remote, name: str) -> None:
    """Remove a file of the node's cache."""
    await ask(remote, "remove", PATIENCE, number=None, name=name)


async def _write(remote: Remote, data: bytes, **asked: object) -> None:
    reply = await ask(remote, "write", PATIENCE, data, **asked)
    if not reply["ok"]:
        raise UnreachableError(f"{asked['name']}: arrived with another checksum")


async def push_trial(remote: Remote, number: int, attempt: int, trial: TrialPaths) -> None:
    """Copy to a node what an attempt resumes from: the record and the newest checkpoint."""
    await ask(remote, "prepare", PATIENCE, number=number, attempt=attempt)
    checkpoints = sorted(p.name for p in trial.checkpoint.glob("[0-9]*")) if trial.checkpoint.is_dir() else []
    newest = f"checkpoint/{checkpoints[-1]}" if checkpoints else "checkpoint"
    names = [trial.events.name, newest]
    listed = await asyncio.to_thread(list_files, trial.root, names)
    await push(remote, number, trial.root, listed)


async def push_entry(remote: Remote, embeddings: Path, key: str) -> int:
    """Copy to a node's cache the missing files of an entry, the manifest last; return the bytes sent."""
    manifest = Manifest.read(embeddings / key)
    if manifest is None:
        raise UnreachableError(f"cache {embeddings / key}: no longer exists")
    if manifest.sources:
        raise UnreachableError(f"cache {embeddings / key}: has no copy of the rows of {manifest.sources[0].path}")
    names = sorted(f"{key}/{name}" for name in manifest.names() if name != MANIFEST)
    names += [path.name for suffix in (".twins", ".keep-*") for path in embeddings.glob(beside(Path(key), suffix).name)]
    names.append(f"{key}/{MANIFEST}")
    ours = await asyncio.to_thread(list_files, embeddings, names)
    theirs = (await ask(remote, "list_files", 10 * PATIENCE, number=None, names=names))["files"]
    missing = [file for file in ours if file not in theirs]
    await push(remote, None, embeddings, missing)
    return sum(file["size"] for file in missing)


async def fetch_newest(remote: Remote, number: int, trial: TrialPaths) -> None:
    """Copy the node's newest checkpoint at once; for targets with another layout, the files of the folder."""
    listed = (await ask(remote, "list_files", PATIENCE, number=number, names=["checkpoint"]))["files"]
    names = sorted({file["name"].split("/")[1] for file in listed if file["name"].count("/") > 1})
    if names and all(name.isdigit() for name in names):
        await fetch_checkpoint(remote, number, names[-1], trial)
    else:
        await fetch(remote, number, ["checkpoint"], trial.root)
