"""What a trial says of its machine."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from saebench.trial.usage import EVERY, Usage

PROCESS = {"system/process_memory_megabytes", "system/process_cpu_seconds"}


class NVMLError(Exception):
    pass


class FakeNvml:
    """Two GPUs and a slice; the slice has no utilisation, as in life."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.gpus = {"GPU-a": (1_000_000_000, 12), "GPU-b": (3_500_000_000, 97), "MIG-c": (500_000_000, None)}
        self.started = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.started += 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.gpus:
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=self.gpus[handle][0])

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        if self.gpus[handle][1] is None:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=self.gpus[handle][1])


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]
    return fake


@pytest.mark.usefixtures("nvml")
def test_the_gpu_that_was_leased_is_the_one_that_is_asked() -> None:
    found = Usage("GPU-b")()
    assert found["system/gpu_memory_usage_megabytes"] == 3500
    assert found["system/gpu_utilization_percentage"] == 97
    assert Usage("GPU-a")()["system/gpu_utilization_percentage"] == 12


@pytest.mark.usefixtures("nvml")
def test_what_a_slice_does_not_tell_is_left_out() -> None:
    assert set(Usage("MIG-c")()) == PROCESS | {"system/gpu_memory_usage_megabytes"}


@pytest.mark.usefixtures("nvml")
def test_a_gpu_that_is_gone_stops_no_trial() -> None:
    assert set(Usage("GPU-x")()) == PROCESS


def test_without_nvml_there_are_the_process_s_own_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert set(Usage("GPU-a")()) == PROCESS


def test_a_cpu_worker_has_its_own_memory_and_cpu_seconds(nvml: FakeNvml) -> None:
    me = psutil.Process(os.getpid())
    before = sum(me.cpu_times()[:2])
    found = Usage()()
    assert set(found) == PROCESS
    assert found["system/process_memory_megabytes"] == pytest.approx(me.memory_info().rss / 1e6, rel=0.2)
    assert before <= found["system/process_cpu_seconds"] <= sum(me.cpu_times()[:2])
    assert nvml.started == 0


def test_it_looks_every_ten_seconds_and_when_told_to() -> None:
    times = iter([0.0, 0.0, EVERY - 0.1, EVERY, EVERY, EVERY + 1])
    usage = Usage(clock=lambda: next(times))
    assert usage()
    assert usage() == {}
    assert usage()
    assert usage(now=True)
