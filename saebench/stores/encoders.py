"""The encoding processes of one build. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saebench.config import DataConfig
from saebench.cores import count_cores
from saebench.models import find_model
from saebench.stores import children
from saebench.stores.children import Child, Inbox, Message
from saebench.stores.entry import ROWS_PER_PART

MAX_CPU_PROCESSES = 8
"""Each holds the model; cores beyond these become threads."""
LONG_WORK = 50_000
"""Texts from which on it is worth a line that there is a faster way."""
_CPU_FLAGS = ("avx512_bf16", "amx_bf16")


class Encoders:
    """One process per device. On the CPU, one single-threaded process per core. Measured on two cores that others used
    too, MiniLM: 1.1 to 6 times as fast as one process with two threads, which wait for each other after every
    operation."""

    def __init__(self, data: DataConfig, folder: Path, devices: list[str], inbox: Inbox) -> None:
        self._data, self._folder, self._devices, self._inbox = data, folder, devices, inbox
        self.loading: list[Child] = []
        self.ready: list[Child] = []
        self.d_in: int | None = None
        self.info: dict[str, Any] = {}

    def __contains__(self, child: Child) -> bool:
        return child in self.loading or child in self.ready

    def start(self) -> None:
        """Start them, where that has not been done; each says `ready` when its model is loaded. Raises DataError where
        there is no such model."""
        if self.loading or self.ready:
            return
        _, local = find_model(self._data.model, self._data.revision)
        offline = {"HF_HUB_OFFLINE": "1"} if local else {}
        data = self._data.model_dump(mode="json")
        for name, inside, environment in _places(self._devices, self._data.num_examples):
            settings = {**environment, **offline}
            child = children.start("saebench.stores.encode", f"the encoder on {name}", settings, self._inbox)
            self.loading.append(child)
            child.send({"data": data, "device": inside, "folder": str(self._folder)})

    def greet(self, child: Child, message: Message) -> None:
        """An encoder is ready."""
        self.loading.remove(child)
        self.ready.append(child)
        self.d_in, self.info = message["d_in"], message["info"]

    def lose(self, child: Child) -> None:
        """An encoder has died."""
        for group in (self.loading, self.ready):
            if child in group:
                group.remove(child)
        child.close()

    def close(self) -> None:
        for child in [*self.loading, *self.ready]:
            self.lose(child)


def _places(devices: list[str], examples: int) -> list[tuple[str, str, dict[str, str]]]:
    """(name, device as the process sees it, environment) of each process."""
    places: list[tuple[str, str, dict[str, str]]] = []
    for device in devices:
        kind, _, which = device.partition(":")
        if kind == "cpu":
            cores = count_cores()
            count = min(cores, MAX_CPU_PROCESSES, -(-examples // ROWS_PER_PART))
            threads = {"OMP_NUM_THREADS": str(max(1, cores // count)), "TOKENIZERS_PARALLELISM": "false"}
            places += [(f"cpu {number}" if count > 1 else "cpu", "cpu", threads) for number in range(count)]
        else:
            visible = {"CUDA_VISIBLE_DEVICES": which} if kind == "cuda" and which else {}
            places.append((device, "cuda:0" if kind == "cuda" else device, visible))
    return places


def faster(data: DataConfig, devices: Sequence[str], rows: int) -> str | None:
    """What to say to who encodes many texts in float32 on devices that compute in bfloat16. It is not chosen without
    being asked for: the key of an entry must not depend on the machine, and other CPUs are slower at it."""
    if data.precision != "float32" or rows < LONG_WORK or not all(map(_computes_in_bfloat16, devices)):
        return None
    return (
        f"encoding {rows:,} texts in float32; data.precision: bfloat16 is faster on this machine, and moved the final "
        "FVU by less than 0.2% where that was measured"
    )


def _computes_in_bfloat16(device: str) -> bool:
    if device != "cpu":
        return device.startswith("cuda")
    try:
        return any(flag in Path("/proc/cpuinfo").read_text("utf-8") for flag in _CPU_FLAGS)
    except OSError:
        return False
