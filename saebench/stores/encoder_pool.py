"""The encoding processes of one build. No torch."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saebench.config import DataConfig
from saebench.cores import count_cores
from saebench.errors import DataError
from saebench.hub import find_model
from saebench.stores import child_process
from saebench.stores.child_process import Child, Inbox, Launch, Message
from saebench.stores.manifest import ROWS_PER_PART

MAX_CPU_PROCESSES = 8
"""Each holds the model; cores beyond these become threads."""
MAX_GPU_PROCESSES = 4
"""On one GPU, if it waits for tokens."""
HELP_SECONDS = 5.0
"""Seconds of an encoder's time that are measured before another is started on the same GPU."""
HELP_TEXTS = 100_000
"""Least number of remaining texts for starting one: a process takes ten seconds to be ready."""
LONG_WORK = 50_000
"""Texts from which on the hint at bfloat16 is shown."""
_CPU_FLAGS = ("avx512_bf16", "amx_bf16")


class EncoderPool:
    """One process per device, and more on a GPU that waits for tokens. On the CPU, one single-threaded process per
    core: measured on two cores that others used too, MiniLM, 1.1 to 6 times as fast as one process with two threads,
    which wait for each other after every operation."""

    def __init__(self, data: DataConfig, folder: Path, devices: Sequence[str | Launch], inbox: Inbox) -> None:
        self._data, self._folder, self._inbox = data, folder, inbox
        self._devices = [device for device in devices if isinstance(device, str)]
        self._launches = [device for device in devices if isinstance(device, Launch)]
        self.loading: list[Child] = []
        self.ready: list[Child] = []
        self.d_in: int | None = None
        self.info: dict[str, Any] = {}
        self.fingerprint: tuple[float, ...] = ()
        self._places: dict[Child, Place] = {}
        self._spent: dict[Child, Counter[str]] = {}
        self._refused = False

    def __contains__(self, child: Child) -> bool:
        return child in self.loading or child in self.ready

    def start(self) -> None:
        """Start the processes once; each reports `ready` when its model is loaded. Raises DataError if there is no such
        model."""
        if self.loading or self.ready:
            return
        _, local = find_model(self._data.model, self._data.revision)
        offline = {"HF_HUB_OFFLINE": "1"} if local else {}
        most = max(1, -(-self._data.num_examples // ROWS_PER_PART))
        elsewhere = [Place(one.name, one.device, dict(one.environment), one.start) for one in self._launches[:most]]
        for place in [*_places(self._devices, self._data.num_examples), *elsewhere]:
            self._start(place._replace(environment={**place.environment, **offline}))

    def _start(self, place: Place) -> None:
        start = place.start or child_process.start
        child = start("saebench.stores.encoder_process", f"the encoder on {place.name}", place.environment, self._inbox)
        self.loading.append(child)
        self._places[child] = place
        child.send({"data": self._data.model_dump(mode="json"), "device": place.inside, "folder": str(self._folder)})

    def help(self, child: Child, seconds: Mapping[str, float], left: int) -> None:
        """Take an encoder's report of how it spent its time; `left` texts remain. If most of it went into tokens and
        its GPU is not busy, start another process on that GPU."""
        spent, place = self._spent.setdefault(child, Counter()), self._places[child]
        spent.update(seconds)
        if spent["all"] < HELP_SECONDS:
            return
        del self._spent[child]
        waits = spent["tokens"] > 0.7 * spent["all"] and spent["device"] < 0.6 * spent["all"]
        if place.start is None and place.inside.startswith("cuda") and waits and left >= HELP_TEXTS:
            most = min(MAX_GPU_PROCESSES, count_cores() // (2 * len(self._devices)))
            if not self.loading and len(self._beside(child)) < most and not self._refused:
                self._start(place)

    def is_optional(self, child: Child) -> bool:
        """Return whether an encoder is a helper that is still loading: losing it costs nothing."""
        return child in self.loading and any(other in self.ready for other in self._beside(child))

    def _beside(self, child: Child) -> list[Child]:
        """The encoders of the same device."""
        return [other for other in (*self.loading, *self.ready) if self._places[other] == self._places[child]]

    def mark_ready(self, child: Child, message: Message) -> None:
        """Record that an encoder has loaded its model."""
        self.loading.remove(child)
        self.ready.append(child)
        self.d_in, self.info = message["d_in"], message["info"]
        self.fingerprint = tuple(message["fingerprint"])

    def remove(self, child: Child) -> None:
        """Remove a dead encoder. After the death of a helper (for lack of memory, say) no other helper is started."""
        self._refused = self._refused or self.is_optional(child)
        for group in (self.loading, self.ready):
            if child in group:
                group.remove(child)
        child.close()

    def close(self) -> None:
        for child in [*self.loading, *self.ready]:
            self.remove(child)


class Place(NamedTuple):
    """The device of one process."""

    name: str
    inside: str
    """Name of the device in the process."""
    environment: dict[str, str]
    start: Callable[[str, str, Mapping[str, str], Inbox], Child] | None = None
    """Function that starts a child there; None: on this machine."""


def _places(devices: list[str], examples: int) -> list[Place]:
    """Return the place of each process that is started first."""
    places: list[Place] = []
    for device in devices:
        kind, _, which = device.partition(":")
        if kind == "cpu":
            cores = count_cores()
            count = min(cores, MAX_CPU_PROCESSES, -(-examples // ROWS_PER_PART))
            threads = {"OMP_NUM_THREADS": str(max(1, cores // count)), "TOKENIZERS_PARALLELISM": "false"}
            places += [Place(f"cpu {number}" if count > 1 else "cpu", "cpu", threads) for number in range(count)]
        else:
            visible = {"CUDA_VISIBLE_DEVICES": _visible(which)} if kind == "cuda" and which else {}
            places.append(Place(device, "cuda:0" if kind == "cuda" else device, visible))
    return places


def _visible(which: str) -> str:
    """Return a GPU's name for CUDA_VISIBLE_DEVICES of another process: a number counts the GPUs that this process sees,
    which may be a part of them."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is None or not which.isdigit():
        return which
    names = [name.strip() for name in seen.split(",")]
    if int(which) >= len(names):
        raise DataError(f"cuda:{which}: no such GPU (CUDA_VISIBLE_DEVICES={seen})")
    return names[int(which)]


def bfloat16_hint(data: DataConfig, devices: Sequence[str | Launch], rows: int) -> str | None:
    """Return a hint for a long encoding in float32 on devices that compute in bfloat16; else None. bfloat16 is not the
    default there: the cache key must not depend on the machine, and other CPUs are slower at it."""
    if data.precision != "float32" or rows < LONG_WORK or not all(map(_computes_in_bfloat16, devices)):
        return None
    return (
        f"encoding {rows:,} texts in float32; data.precision: bfloat16 is faster on this machine, and moved the final "
        "FVU by less than 0.2% where that was measured"
    )


def _computes_in_bfloat16(device: str | Launch) -> bool:
    if isinstance(device, Launch):
        return device.device.startswith("cuda")
    if device != "cpu":
        return device.startswith("cuda")
    try:
        return any(flag in Path("/proc/cpuinfo").read_text("utf-8") for flag in _CPU_FLAGS)
    except OSError:
        return False
