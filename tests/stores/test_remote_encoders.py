"""Encoding spread over the agents of a cluster (without Ray): the entry has the bytes of one that was made here."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from corpora import HashModel, sentences
from executors.fake_ray import FakeCluster, World

from saebench.config import DataConfig
from saebench.errors import DataError
from saebench.executors.ray.encoders import ONE_THREAD, Encoders
from saebench.executors.ray.shares import Node
from saebench.stores import cache
from saebench.stores.child_process import Launch


class Cluster:
    """Three nodes whose fleet runs in a thread, and the scheduler's end of its encoders."""

    def __init__(self, folder: Path, storage: str) -> None:
        self.fake = FakeCluster([Node(f"id-{name}", name, 2, 0.0) for name in "abc"])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.replies: list[dict[str, Any]] = []
        self.encoders = Encoders(self._send, lambda _: time.sleep(0.01), lambda: None)
        self._run(self._open(folder, storage))

    async def _open(self, folder: Path, storage: str) -> None:
        self._world = World(folder, self.fake, storage=storage, per_device=1, threads=1)
        self._world.fleet._send = self._world.fleet._encoding._send = self._hear
        await self._world.fleet.open()

    def _hear(self, message: dict[str, Any]) -> None:
        self._world.said.append(message)
        if message["type"] == "child":
            self.replies.append(message["message"])
            self.encoders.hear(message)

    def _send(self, message: dict[str, Any]) -> None:
        message.pop("op")
        self._loop.call_soon_threadsafe(self._world.fleet.encode, message)

    def launches(self) -> list[Launch]:
        return [self.encoders.launch(agent, "abc"[agent - 1], "cpu", ONE_THREAD) for agent in (1, 2, 3)]

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        self._run(self._world.fleet.close())
        self._run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Cluster]]:
    made: list[Cluster] = []
    monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr("saebench.executors.ray.member.POLL", 0.3)

    def make(storage: str) -> Cluster:
        made.append(Cluster(tmp_path, storage))
        return made[-1]

    yield make
    for one in made:
        one.close()


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("inline", "small_pieces")
@pytest.mark.parametrize("storage", ["shared", "streamed"])
def test_the_entry_is_the_one_that_is_made_here(
    cluster: Callable[[str], Cluster], corpus: Callable[..., DataConfig], tmp_path: Path, storage: str
) -> None:
    data = corpus(sentences(300))
    here = cache.build(data, tmp_path / "here")
    nodes = cluster(storage)
    there = cache.build(data, tmp_path / "cache", nodes.launches())
    assert content(there.directory) == content(here.directory)
    assert sum(message["type"] == "ready" for message in nodes.replies) == 3
    assert sum(message["type"] == "done" for message in nodes.replies) == 19
    left = content(tmp_path / "node") if storage == "streamed" else {}
    assert not [name for name in left if "/parts/" in name]


@pytest.mark.usefixtures("inline", "small_pieces")
@pytest.mark.parametrize("storage", ["shared", "streamed"])
def test_a_node_that_is_lost_costs_its_pieces(
    cluster: Callable[[str], Cluster],
    corpus: Callable[..., DataConfig],
    tmp_path: Path,
    storage: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(HashModel, "__call__", slow(HashModel.__call__))
    data = corpus(sentences(300))
    here = cache.build(data, tmp_path / "here")
    nodes, notes = cluster(storage), list[str]()

    def strike(progress: Any) -> None:
        if progress.stage == "encoding":
            nodes.fake.remotes[1].dead = True
        if progress.warning:
            notes.append(progress.message)

    there = cache.build(data, tmp_path / "cache", nodes.launches(), strike)
    assert notes == ["the encoder on b was lost with its agent; the other encoders continue"]
    assert content(there.directory) == content(here.directory)


@pytest.mark.usefixtures("inline", "small_pieces")
def test_without_any_node_left_the_build_ends_in_a_sentence(
    cluster: Callable[[str], Cluster], corpus: Callable[..., DataConfig], tmp_path: Path
) -> None:
    nodes = cluster("shared")
    for remote in nodes.fake.remotes:
        remote.dead = True
    with pytest.raises(DataError, match=r"^the encoder on [abc] was lost with its agent$"):
        cache.build(corpus(sentences(300)), tmp_path / "cache", nodes.launches())


@pytest.mark.usefixtures("inline", "small_pieces")
def test_a_node_without_the_model_is_named(
    cluster: Callable[[str], Cluster],
    corpus: Callable[..., DataConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model is on this machine: the message of `find_model` alone would be puzzling."""

    def load(data: DataConfig, _: str) -> Any:
        raise DataError(f"model {data.model}: cannot be loaded: no such folder")

    monkeypatch.setattr("saebench.stores.sentence_encoder._load", load)
    with pytest.raises(DataError, match=r"^node [abc]: model hash-model: cannot be loaded: no such folder$"):
        cache.build(corpus(sentences(300)), tmp_path / "cache", cluster("streamed").launches())


def slow(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        time.sleep(0.02)
        return method(*arguments)

    return run
