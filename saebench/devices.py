"""Find devices and divide them into slots; without importing torch and without initialising CUDA."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saebench.cores import count_cores
from saebench.errors import PreflightError
from saebench.sweep_config import RunConfig

CORES_PER_CPU_SLOT = 2
USABLE_MEMORY = 0.95
"""Share of a GPU's memory that its trials share; the rest is for CUDA contexts."""


@dataclass(frozen=True)
class Slot:
    """A device, or a share of one, on which one trial runs at a time."""

    id: int
    device: str
    """cpu | cuda:<uuid> | mps, on another machine after its node ("node/cuda:<uuid>"): two slots share a device if and
    only if this is the same. Inside the worker a CUDA device is always cuda:0."""
    name: str
    """Name for display: "cpu 0", "cuda 1: NVIDIA H200"."""
    threads: int = 1
    """Cores that the worker may use."""
    memory_fraction: float | None = None
    """Largest share of the device's memory, if trials share it."""
    node: str = ""
    """Name of the machine; empty for this one."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a slice (MIG) of one."""

    index: str
    """Position in the order of PCI bus ids; "0:1" for slice 1 of GPU 0."""
    uuid: str
    name: str


def make_slots(run: RunConfig) -> tuple[Slot, ...]:
    """Return the slots of `run.devices` and `run.per_device`; raise PreflightError for a device that does not exist."""
    cores = count_cores()
    devices = find_devices(run.devices)
    on_cpu = devices == [("cpu", "cpu")]
    share = run.per_device or (max(1, cores // (run.threads or CORES_PER_CPU_SLOT)) if on_cpu else 1)
    threads = run.threads or max(1, cores // (share * len(devices)))
    fraction = round(USABLE_MEMORY / share, 4) if share > 1 and devices[0][0].startswith("cuda") else None
    places = [(device, name, part) for device, name in devices for part in range(share)]
    return tuple(
        Slot(i, device, f"{name} ({part + 1}/{share})" if share > 1 else name, threads, fraction)
        for i, (device, name, part) in enumerate(places)
    )


def find_devices(wanted: str | Sequence[int | str]) -> list[tuple[str, str]]:
    """Return (device, name) of each requested device; `auto` means all GPUs, else MPS, else the CPU."""
    if wanted == "cpu":
        return [("cpu", "cpu")]
    if wanted == "mps":
        if not has_mps():
            raise PreflightError(f"run.devices: mps: not available on this machine ({_available()})")
        return [("mps", "mps")]
    if wanted == "auto":
        gpus = visible_gpus() if torch_has_cuda() else []
        if gpus:
            return [_named(gpu) for gpu in gpus]
        return [("mps", "mps")] if has_mps() else [("cpu", "cpu")]
    if not wanted:
        raise PreflightError("run.devices: the list is empty")
    for one in ("cpu", "mps"):
        if one in wanted:
            raise PreflightError(
                f"run.devices: {one}: a list names GPUs; write devices: {one}, and per_device to share it"
            )
    chosen = [_named(_pick(visible_gpus(), one)) for one in wanted]
    doubles = [one for i, one in enumerate(wanted) if chosen[i] in chosen[:i]]
    if doubles:
        raise PreflightError(f"run.devices: {doubles[0]}: named twice (use per_device to share a device)")
    if not torch_has_cuda():
        raise PreflightError(f"run.devices: {wanted[0]}: the torch that is installed was built without CUDA")
    return chosen


def torch_has_cuda() -> bool:
    """Return whether the installed torch was built with CUDA; without, it cannot use a GPU. Reads torch's version file,
    since this module does not import torch."""
    found = importlib.util.find_spec("torch")
    try:
        text = Path(found.origin).with_name("version.py").read_text("utf-8") if found and found.origin else ""
    except OSError:
        return True
    return re.search(r"^cuda\b[^=\n]*= *None", text, re.MULTILINE) is None


def _named(gpu: Gpu) -> tuple[str, str]:
    return f"cuda:{gpu.uuid}", f"cuda {gpu.index}: {gpu.name}"


def _pick(gpus: Sequence[Gpu], wanted: int | str) -> Gpu:
    """Return the GPU at a position among the visible ones, or with a UUID or prefix of one, as CUDA resolves them."""
    if str(wanted).isdigit() and int(wanted) < len(gpus):
        return gpus[int(wanted)]
    found = [] if str(wanted).isdigit() else [gpu for gpu in gpus if gpu.uuid.startswith(str(wanted))]
    if len(found) != 1:
        which = "no such GPU" if not found else "the beginning of several UUIDs"
        raise PreflightError(f"run.devices: {wanted}: {which} ({_available()})")
    return found[0]


def _available() -> str:
    gpus = visible_gpus()
    masked = " visible through CUDA_VISIBLE_DEVICES" if os.environ.get("CUDA_VISIBLE_DEVICES") is not None else ""
    if not gpus:
        return f"no GPU was found{masked}" + (", but mps" if has_mps() else ", only the cpu")
    return f"there are{masked}: " + ", ".join(f"{i} = {gpu.name} {gpu.uuid}" for i, gpu in enumerate(gpus))


def visible_gpus(environment: Mapping[str, str] | None = None) -> list[Gpu]:
    """Return the GPUs that an inherited CUDA_VISIBLE_DEVICES (Slurm, containers) leaves visible, in its order.

    Entries are indices in PCI order, UUIDs or prefixes of UUIDs. As in CUDA, an entry that matches no GPU and all
    entries after it are ignored, and the index of a sliced GPU means its first slice. A UUID that neither nvidia-smi
    nor NVML lists (a slice that only CUDA sees) is accepted.
    """
    mask = (os.environ if environment is None else environment).get("CUDA_VISIBLE_DEVICES")
    if mask is not None and mask.strip() in ("", "-1", "none", "NoDevFiles", "void"):
        return []
    gpus = all_gpus()
    if mask is None:
        return gpus
    visible: list[Gpu] = []
    for entry in (part.strip() for part in mask.split(",")):
        found = [g for g in gpus if entry == g.index or (not entry.isdigit() and g.uuid.startswith(entry))]
        if not found and entry.isdigit():
            found = [g for g in gpus if g.index.startswith(f"{entry}:")][:1]
        if not found and entry.startswith("MIG-"):
            found = [Gpu(str(len(visible)), entry, "MIG slice")]
        if len(found) != 1 or not entry:
            break
        visible += [gpu for gpu in found if gpu not in visible]
    return visible


def all_gpus() -> list[Gpu]:
    """Return every GPU of this machine in PCI order, by nvidia-smi, else by NVML; a sliced GPU is replaced by its
    slices."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return _gpus_by_nvml()
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return _gpus_by_nvml()
    return parse_listing(listing)


def parse_listing(listing: str) -> list[Gpu]:
    """Return the GPUs in the output of `nvidia-smi -L`."""
    gpus: list[Gpu] = []
    for line in listing.splitlines():
        whole = re.match(r"GPU (\d+): (.+) \(UUID: (\S+)\)", line)
        part = re.match(r"\s+MIG (.+?)\s+Device\s+(\d+): \(UUID: (\S+)\)", line)
        if whole:
            gpus.append(Gpu(whole[1], whole[3], whole[2].strip()))
        elif part and gpus:
            parent = gpus[-1].index.partition(":")[0]
            name = gpus[-1].name if ":" in gpus[-1].index else f"{gpus[-1].name} MIG"
            if ":" not in gpus[-1].index:
                gpus.pop()
            gpus.append(Gpu(f"{parent}:{part[2]}", part[3], name))
    return gpus


def _gpus_by_nvml() -> list[Gpu]:
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        return []
    return [gpu for index in range(count) for gpu in _one_by_nvml(pynvml, index)]


def _one_by_nvml(pynvml: Any, index: int) -> list[Gpu]:
    """Return the GPU, or its slices; [] if the GPU has fallen off the bus."""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(pynvml.nvmlDeviceGetName(handle))
        whole = Gpu(str(index), _text(pynvml.nvmlDeviceGetUUID(handle)), name)
    except pynvml.NVMLError:
        return []
    slices = []
    with contextlib.suppress(pynvml.NVMLError):  # raised by a GPU without MIG support
        for number in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with contextlib.suppress(pynvml.NVMLError):  # no slice at this position
                part = pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
                slices.append(Gpu(f"{index}:{number}", _text(pynvml.nvmlDeviceGetUUID(part)), f"{name} MIG"))
    return slices or [whole]


def _text(found: str | bytes) -> str:
    """Decode bytes, which older bindings of NVML return."""
    return found.decode() if isinstance(found, bytes) else found


def uses_gpu(pid: int, device: str) -> bool:
    """Return whether NVML still reports memory of process `pid` on `device`; False without NVML."""
    if not device.startswith("cuda:"):
        return False
    try:
        import pynvml
    except ImportError:
        return False
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(device.removeprefix("cuda:"))
        return any(process.pid == pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    except pynvml.NVMLError:
        return False


def has_mps() -> bool:
    """Return whether this is a Mac whose GPU torch can use."""
    return sys.platform == "darwin" and platform.machine() == "arm64"
