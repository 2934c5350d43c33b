"""The only module that uses Ray: connect, list the nodes, create agents, call them."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
from typing import Any

import ray
from ray._private import state
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saebench.errors import PreflightError
from saebench.executors.ray.agent import Agent
from saebench.executors.ray.remote import LostError, RefusedError, UnreachableError
from saebench.executors.ray.shares import Node, Share
from saebench.runs.secrets import mask

PROBE = """
import sys
from ray._raylet import GcsClient
try:
    GcsClient(address=sys.argv[1]).internal_kv_get(b"saebench", None, timeout=5)
except Exception as error:
    print(type(error).__name__)
else:
    print("open")
"""
"""Return whether the cluster accepts connections without a token. Asked in a separate process, since Ray reads
RAY_AUTH_MODE only once."""


class RayRemote:
    """See `Remote`."""

    def __init__(self, actor: Any, node_id: str) -> None:
        self._actor, self._node_id = actor, node_id

    @property
    def node_id(self) -> str:
        return self._node_id

    async def call(self, name: str, text: str, data: bytes | None = None) -> str | bytes:
        arguments = (text,) if data is None else (text, data)
        try:
            found: str | bytes = await getattr(self._actor, name).remote(*arguments)
            return found
        except ActorUnavailableError as error:
            raise UnreachableError(_first_line(error)) from None
        except (ActorDiedError, RayActorError) as error:
            raise LostError(_first_line(error)) from None
        except RayTaskError as error:  # a defect of the agent
            raise RefusedError(f"{name}: {str(error).strip().splitlines()[-1]}") from None
        except RayError as error:
            raise UnreachableError(_first_line(error)) from None

    def kill(self) -> None:
        with contextlib.suppress(Exception):
            ray.kill(self._actor)


class RayCluster:
    """A connection to a cluster. Raises PreflightError, one line, if it cannot connect."""

    def __init__(self, address: str | None, *, insecure: bool) -> None:
        self.address = _address(address)
        _reach(self.address)
        _authenticate(self.address, insecure=insecure)
        try:
            ray.init(
                address=self.address, namespace="saebench", log_to_driver=False, configure_logging=False,
                logging_level=logging.ERROR,
            )  # fmt: skip
        except (RuntimeError, ConnectionError) as error:
            raise PreflightError(f"run.address: {self.address}: {_one_line(error)}") from None

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive; blocks briefly."""
        draining: dict[str, Any] = {}
        with contextlib.suppress(AttributeError):
            draining = state.state.get_draining_nodes()
        return [
            Node(
                node["NodeID"],
                node["NodeName"] if node["NodeName"] != node["NodeManagerAddress"] else node["NodeManagerHostname"],
                int(node["Resources"].get("CPU", 0)),
                node["Resources"].get("GPU", 0.0),
                node["NodeID"] in draining,
            )
            for node in ray.nodes()  # type: ignore[no-untyped-call]
            if node["Alive"]
        ]

    def create(self, share: Share, setup: str) -> RayRemote:
        """Request an agent; it may have to wait for free resources."""
        where: Any = "SPREAD"
        if share.node_id:
            where = NodeAffinitySchedulingStrategy(share.node_id, soft=False)
        kind = ray.remote(Agent).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_restarts=0, max_task_retries=0, max_concurrency=64,
            scheduling_strategy=where,
        )  # fmt: skip
        return RayRemote(kind.remote(setup), share.node_id)

    def close(self) -> None:
        ray.shutdown()


def _address(given: str | None) -> str:
    address = given or os.environ.get("RAY_ADDRESS") or ""
    if address in ("", "auto"):
        from ray._private.services import canonicalize_bootstrap_address

        address = canonicalize_bootstrap_address("auto") or ""
    if not address:
        raise PreflightError(
            "run.address: no Ray cluster on this machine; give HOST:PORT of its head (ray start --head)"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise PreflightError(f"run.address: {mask(address)}: is not HOST:PORT of a Ray head")
    return address


def _reach(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise PreflightError(
            f"run.address: {address}: no Ray head answers there ({error.strerror or error}); "
            "start one: ray start --head"
        ) from None


def _authenticate(address: str, *, insecure: bool) -> None:
    """Refuse a cluster without authentication and a wrong token, before Ray retries for 20 seconds."""
    with_token = os.environ.get("RAY_AUTH_MODE") == "token"
    if not with_token and not insecure:
        raise PreflightError(
            "run.executor: ray: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here and where `ray start` runs: a Ray "
            "port without a token runs code for everybody who reaches it (or set run.insecure: true)"
        )
    doors = {mode: _probe(address, mode) for mode in ["token"] * with_token + ["disabled"] * (not insecure)}
    found = {mode: child.communicate(timeout=25)[0].strip() for mode, child in doors.items()}
    if found.get("disabled") == "open":
        raise PreflightError(
            f"run.address: {address}: the cluster requires no token: start it with RAY_AUTH_MODE=token "
            "(or set run.insecure: true)"
        )
    if with_token and found["token"] == "AuthenticationError":
        raise PreflightError(
            f"run.address: {address}: the cluster has another token than RAY_AUTH_TOKEN_PATH here; "
            "copy its token file to this machine"
        )
    if with_token and found["token"] != "open":
        why = found["token"] or "does the file RAY_AUTH_TOKEN_PATH exist?"
        raise PreflightError(f"run.address: {address}: the head does not answer as a Ray head ({why})")


def _probe(address: str, mode: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "RAY_AUTH_MODE": mode}
    return subprocess.Popen(
        [sys.executable, "-c", PROBE, address], env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def _first_line(error: BaseException) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line[:200]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
