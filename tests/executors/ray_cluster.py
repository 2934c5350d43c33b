"""A Ray cluster of several nodes on this machine, for tests: started one by one, each tried again if it does not come
up (`ray start` gives up after 30 s, which a busy machine needs), with a token, nothing left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

HERE = Path(__file__).parent
TRIES = 4
RAY = Path(sys.executable).with_name("ray")


class Node:
    """A raylet and what belongs to it (on the head, the GCS too), in a process group of `ray start --block`."""

    def __init__(self, process: subprocess.Popen[bytes], name: str, cache: Path) -> None:
        self.process, self.name, self.cache = process, name, cache

    def family(self) -> list[psutil.Process]:
        """Every process of the node: descendants of `ray start`, also those in sessions of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """SIGKILL to everything at once, as when a machine loses its power."""
        for process in [*self.family(), psutil.Process(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


class Cluster:
    """The head has no CPUs for agents, unless it is told to have some."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.token = self.folder / "token"
        self.token.write_text(secrets.token_hex(24))
        self.token.chmod(0o600)
        self.nodes: list[Node] = []
        self.address = ""

    def environment(self, cache: Path | None = None) -> dict[str, str]:
        places = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
        own = {} if cache is None else {"SAEBENCH_CACHE": str(cache), "SAEBENCH_SCRATCH": str(cache / "scratch")}
        return {
            **os.environ,
            **own,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",  # 15 starves where others share the machine
            "PYTHONPATH": os.pathsep.join(places),
        }

    def start_head(self, cpus: int = 0) -> Node:
        for _ in range(TRIES):
            port = _free_port()
            arguments = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={self.folder / 'ray'}"]
            if node := self._start("head", cpus, arguments):
                self.address = f"{_own_address()}:{port}"
                return node
        raise TimeoutError("no Ray head came up")

    def ensure(self, names: str) -> None:
        """Have these nodes, with two CPUs each."""
        for name in names:
            if name not in [node.name for node in self.nodes]:
                self.start_node(name)

    def start_node(self, name: str, cpus: int = 2) -> Node:
        for _ in range(TRIES):
            if node := self._start(name, cpus, [f"--address={self.address}"]):
                return node
        raise TimeoutError(f"no Ray node {name} came up")

    def _start(self, name: str, cpus: int, arguments: list[str]) -> Node | None:
        cache, log = self.folder / f"cache-{name}", self.folder / f"{name}.log"
        cache.mkdir(exist_ok=True)
        command = [str(RAY), "start", *arguments, f"--num-cpus={cpus}", f"--node-name={name}", "--disable-usage-stats"]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--num-gpus=0", "--object-store-memory=80000000", "--block"],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env=self.environment(cache),
                start_new_session=True,
            )
        node = Node(process, name, cache)
        end = time.monotonic() + 90
        while time.monotonic() < end and process.poll() is None:
            if b"Ray runtime started" in log.read_bytes():
                self.nodes.append(node)
                return node
            time.sleep(0.2)
        node.kill()
        return None

    def close(self) -> None:
        for node in reversed(self.nodes):
            with contextlib.suppress(psutil.NoSuchProcess):
                node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("", 0))
        return int(one.getsockname()[1])


def _own_address() -> str:
    """As Ray finds it: the address from which the way outside begins (no packet is sent)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
        one.connect(("8.8.8.8", 53))
        return str(one.getsockname()[0])
    return "127.0.0.1"


def end(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
