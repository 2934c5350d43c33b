"""What one step of ours is to a GPU and to its host: kernels, launches, waits of the host, memory.

Waits are found by torch's own alarm for synchronising operations, counted where it goes off (as an error it would end
the step at the first one; as a warning it says where every one is), and counted once more among the calls that the
profiler sees, because the alarm does not know all.
"""

from __future__ import annotations

import json
import tempfile
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contestants import OURS, start, variants
from timing import WARM_UP, Step, reason, release
from work import Work

import saebench
from saebench.saes.kernels_select import chunks

PACKAGE = Path(saebench.__file__).parent
STEPS = 20
"""Steps that are watched."""
ALARM = "synchronizing CUDA operation"
FALLBACK = "no CUDA graph"
"""How the warning begins that a step could not be recorded."""
LAUNCHES = ("LaunchKernel", "GraphLaunch", "MemcpyAsync", "MemsetAsync")
WAITS = ("StreamSynchronize", "EventSynchronize")
TOP = 5
"""Kernels that are named."""


@dataclass(frozen=True)
class Trace:
    """Of one step, by the profiler."""

    kernels: float
    copies: float
    """Copies and fills."""
    launches: float
    """Calls by which the host asks for any of them."""
    waits: float
    """Calls by which the host waits for a stream."""
    busy: float
    """Milliseconds in kernels, copies and fills."""
    top: list[tuple[str, float]]
    """Kernels that take the most, and their milliseconds."""


@dataclass(frozen=True)
class Facts:
    """About one step of a variant of ours."""

    trace: Trace
    waits: Counter[str]
    """Place -> times in STEPS steps."""
    peak: int
    """Bytes beyond parameters, gradients and moments, at most, since the training was made: steps as they are, the
    recording of a graph and replays. cuBLAS's workspaces count, 32 MiB for a stream of its own on Hopper."""
    remarks: list[str]


def examine(kind: str, work: Work, train: dict[str, Any]) -> Facts:
    """Of a new training of ours, warmed up; on a GPU."""
    torch.cuda.synchronize(work.device)
    release(work.device)
    before = torch.cuda.memory_allocated(work.device)
    training, step = start(kind, work, train)
    known = 4 * sum(p.numel() * p.element_size() for p in training.sae.parameters())
    torch.cuda.reset_peak_memory_stats(work.device)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(WARM_UP["cuda"]):
            step()
    torch.cuda.synchronize(work.device)
    peak = torch.cuda.max_memory_allocated(work.device) - before - known
    remarks = [str(one.message) for one in said if str(one.message).startswith(FALLBACK)]
    return Facts(trace(step, work.device), waits(step), peak, remarks)


@contextmanager
def alarmed() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(step: Step) -> Counter[str]:
    """Where the host waits for the device in STEPS steps, and how often."""
    found: Counter[str] = Counter()

    def note(
        message: Warning | str, category: object, filename: str, lineno: int, file: object = None, line: object = None
    ) -> None:
        del category, file, line
        if ALARM in str(message):
            found[place(filename, lineno)] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # called where the alarm goes off, so that the stack is there to be read
        with alarmed():
            for _ in range(STEPS):
                step()
    return found


def place(filename: str, line: int) -> str:
    """The innermost line of the package on the stack of this thread, else the given one."""
    ours = [frame for frame in traceback.extract_stack() if PACKAGE in Path(frame.filename).parents]
    if ours:
        return f"{Path(ours[-1].filename).relative_to(PACKAGE.parent)}:{ours[-1].lineno} ({ours[-1].line})"
    return f"{filename}:{line}"


def trace(step: Step, device: torch.device) -> Trace:
    from torch.profiler import ProfilerActivity, profile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize(device)
        profiler.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text("utf-8")), STEPS)


def read_trace(found: dict[str, Any], steps: int) -> Trace:
    """From Chrome's trace format: events with a category, a name and a duration in microseconds."""
    events = [event for event in found["traceEvents"] if event.get("ph") == "X"]
    kernels = [event for event in events if event.get("cat") == "kernel"]
    copies = [event for event in events if event.get("cat") in ("gpu_memcpy", "gpu_memset")]
    host = [event["name"] for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    spent: defaultdict[str, float] = defaultdict(float)
    for event in kernels:
        spent[event["name"]] += event["dur"] / 1e3 / steps
    return Trace(
        kernels=len(kernels) / steps,
        copies=len(copies) / steps,
        launches=sum(any(call in name for call in LAUNCHES) for name in host) / steps,
        waits=sum(any(call in name for call in WAITS) for name in host) / steps,
        busy=sum(event["dur"] for event in kernels + copies) / 1e3 / steps,
        top=sorted(spent.items(), key=lambda item: -item[1])[:TOP],
    )


def report(kind: str, work: Work) -> tuple[list[str], list[str]]:
    """(rows of the table, lines below it) for every variant of a type."""
    rows: list[str] = []
    lines: list[str] = []
    for name, train in variants(kind, work.device).items():
        label = f"{kind}{name.removeprefix(OURS)}"
        try:
            facts = examine(kind, work, train)
        except Exception as error:  # one variant that fails on this device should not hide the others
            lines.append(f"{label}: {reason(error)}")
            continue
        rows.append(row(label, facts, chunk_bytes(work)))
        lines += [f"{label}: {remark}" for remark in facts.remarks]
        lines += [f"{label}: waits at {place}, {times} times in {STEPS} steps" for place, times in facts.waits.items()]
        if not facts.trace.kernels:
            lines.append(f"{label}: the profiler saw no kernel")
        if name == OURS:
            lines += [f"{label}: {ms:.3f} ms in {kernel[:90]}" for kernel, ms in facts.trace.top]
    return rows, lines


HEAD = [
    "| a step of saebench | kernels | copies, fills | launches by the host | waits: alarm, profiler | ms busy | "
    "extra memory, MiB | one chunk, MiB |",
    f"| --- |{' ---: |' * 7}",
]


def row(label: str, facts: Facts, chunk: int) -> str:
    t = facts.trace
    waited = f"{facts.waits.total() / STEPS:.2f}, {t.waits:.2f}"
    counts = f"{t.kernels:.0f} | {t.copies:.0f} | {t.launches:.0f} | {waited} | {t.busy:.3f}"
    return f"| {label} | {counts} | {facts.peak / 2**20:.0f} | {chunk / 2**20:.0f} |"


def chunk_bytes(work: Work) -> int:
    """One chunk of pre-activations, float32."""
    return 4 * work.dict_size * max(len(part) for part in chunks(work.rows[: work.batch], work.dict_size))
