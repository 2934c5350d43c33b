"""Machines made of namespaces: own network, process table, host name, mounts and /tmp, joined by a bridge. Needs root.

SIGKILL to a machine's first process is the loss of its power; `link(up=False)` pulls its cable.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

BRIDGE, NET = "saebr0", "10.77.0"
FIRST = """
import ctypes, os, signal, socket, sys, time
name, folder, hidden = sys.argv[1], sys.argv[2], sys.argv[3:]
socket.sethostname(name)
def run(*command):
    if os.spawnvp(os.P_WAIT, command[0], command):
        sys.exit("failed: " + " ".join(command))
run("mount", "--make-rprivate", "/")
run("mount", "-t", "proc", "proc", "/proc")
for place in ["/tmp", *hidden]:
    os.makedirs(place, exist_ok=True)
    run("mount", "-t", "tmpfs", "tmpfs", place)
run("ip", "link", "set", "lo", "up")
open(os.path.join(folder, name + ".up"), "w").close()
while True:
    try:
        os.wait()
    except ChildProcessError:
        time.sleep(0.2)
"""
"""A machine's process 1: it reaps what is left behind, as an init does."""


def sh(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True)


class Machine:
    """`hidden`: folders that are empty on this machine."""

    def __init__(self, number: int, name: str, folder: Path, hidden: Sequence[Path] = ()) -> None:
        self.name, self.address, self._folder = name, f"{NET}.{number}", folder
        up = folder / f"{name}.up"
        up.unlink(missing_ok=True)
        self._unshare = subprocess.Popen(
            ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--kill-child",
             sys.executable, "-c", FIRST, name, str(folder), *map(str, hidden)],
            start_new_session=True,
        )  # fmt: skip
        while not up.exists():
            if self._unshare.poll() is not None:
                raise RuntimeError(f"{name}: did not start")
            time.sleep(0.02)
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        self.first = int(children[0])
        self._port = f"sae{number}"
        sh("ip", "link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self.first))
        sh("ip", "link", "set", self._port, "master", BRIDGE, "up")
        sh("nsenter", "-t", str(self.first), "-n", "ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        sh("nsenter", "-t", str(self.first), "-n", "ip", "link", "set", "eth0", "up")

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Run a command on the machine."""
        enter = ["nsenter", "-t", str(self.first), "-n", "-p", "-m", "-u", "--"]
        with log.open("ab") as output:
            return subprocess.Popen(
                [*enter, *command], env=dict(environment), stdout=output, stderr=output, stdin=subprocess.DEVNULL
            )

    def processes(self) -> list[int]:
        """Return the machine's processes, by their numbers on this machine."""
        own = os.readlink(f"/proc/{self.first}/ns/pid")
        found = []
        for place in Path("/proc").glob("[0-9]*/ns/pid"):
            with contextlib.suppress(OSError):
                if os.readlink(place) == own:
                    found.append(int(place.parts[2]))
        return found

    def link(self, *, up: bool) -> None:
        """Plug the cable in, or pull it out."""
        sh("ip", "link", "set", self._port, "up" if up else "down")

    def kill(self) -> None:
        """Cut the power."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self._unshare.wait()
        sh("ip", "link", "del", self._port, check=False)


def make_bridge() -> None:
    sh("ip", "link", "del", BRIDGE, check=False)
    sh("ip", "link", "add", BRIDGE, "type", "bridge")
    sh("ip", "addr", "add", f"{NET}.254/24", "dev", BRIDGE)
    sh("ip", "link", "set", BRIDGE, "up")


def remove_bridge() -> None:
    sh("ip", "link", "del", BRIDGE, check=False)
