"""How a cluster is divided into agents. Pure functions. No Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from saebench.devices import CORES_PER_CPU_SLOT
from saebench.errors import PreflightError
from saebench.sweep_config import RunConfig


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    cpus: int
    gpus: float
    draining: bool = False


@dataclass(frozen=True)
class Share:
    """The resources of one agent. node_id "": on any node, now or later."""

    node_id: str
    cpus: int
    gpus: float
    slots: int
    threads: int


def kind_of(run: RunConfig, nodes: Sequence[Node]) -> str:
    """Return gpu or cpu, the devices of this sweep's agents. Raises PreflightError for devices that Ray cannot
    choose."""
    there = ", ".join(f"{node.name}: {node.cpus} CPUs, {node.gpus:g} GPUs" for node in nodes) or "no node"
    if run.devices not in ("auto", "cpu"):
        raise PreflightError(f"run.devices: {run.devices}: on a Ray cluster, auto or cpu ({there})")
    has_gpus = any(node.gpus >= (run.gpus_per_trial or 1) for node in nodes)
    if run.gpus_per_trial is not None and not has_gpus:
        raise PreflightError(f"run.gpus_per_trial: {run.gpus_per_trial:g}: no node has a GPU ({there})")
    return "gpu" if has_gpus and run.devices == "auto" else "cpu"


def divide(run: RunConfig, nodes: Sequence[Node], kind: str) -> list[Share]:
    """Return the agents for `run.agents` on these nodes: with auto, all that fit; with a number, that many, some of
    them waiting for room if the cluster is too small. All trials of a sweep get the same number of threads."""
    shares = [share for node in nodes if not node.draining for share in _on(run, node, kind)]
    if run.agents != "auto":
        shares = _spread(shares)[: run.agents]
        pattern = min(shares, key=lambda share: share.cpus, default=None)
        if pattern is None:
            return []
        shares += [replace(pattern, node_id="")] * (run.agents - len(shares))
    threads = run.threads or min((share.threads for share in shares), default=1)
    return [replace(share, threads=threads) for share in shares]


def _on(run: RunConfig, node: Node, kind: str) -> list[Share]:
    if kind == "gpu":
        per_agent = run.gpus_per_trial or 1.0
        count = int(node.gpus / per_agent + 1e-9)
        slots = 1 if run.gpus_per_trial is not None else run.per_device or 1
        cpus = max(1, node.cpus // max(1, count))
        threads = run.threads or max(1, cpus // slots)
        return [Share(node.id, min(cpus, threads * slots), per_agent, slots, threads)] * count
    count = 1
    if run.agents != "auto" and run.per_device and run.threads:
        count = max(1, node.cpus // (run.per_device * run.threads))
    cpus = node.cpus // count
    slots = run.per_device or max(1, cpus // (run.threads or CORES_PER_CPU_SLOT))
    threads = run.threads or max(1, cpus // slots)
    if cpus < 1 or threads > cpus:
        return []
    return [Share(node.id, min(cpus, threads * slots), 0.0, slots, threads)] * count


def _spread(shares: Sequence[Share]) -> list[Share]:
    """Order shares by node in turn: the first of every node, then the second."""
    seen: dict[str, int] = {}
    turns = []
    for share in shares:
        seen[share.node_id] = seen.get(share.node_id, 0) + 1
        turns.append((seen[share.node_id], share))
    return [share for _, share in sorted(turns, key=lambda turn: turn[0])]
