from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from saebench import cores as cores_of_this_process
from saebench import devices
from saebench.errors import PreflightError
from saebench.sweep_config import RunConfig

TWO = """GPU 0: NVIDIA H200 (UUID: GPU-aaaa1111-0000-0000-0000-000000000000)
GPU 1: NVIDIA H200 (UUID: GPU-aabb2222-0000-0000-0000-000000000000)
"""
A, B = "GPU-aaaa1111-0000-0000-0000-000000000000", "GPU-aabb2222-0000-0000-0000-000000000000"
SLICED = f"""GPU 0: NVIDIA A100-SXM4-40GB (UUID: {A})
  MIG 3g.20gb     Device  0: (UUID: MIG-11111111-1111-1111-1111-111111111111)
  MIG 3g.20gb     Device  1: (UUID: MIG-22222222-2222-2222-2222-222222222222)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: {B})
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts an `nvidia-smi` on PATH that prints the given listing."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "count_cores", lambda: 8)
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: True)

    def install(listing: str, status: int = 0) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text(f"#!/bin/sh\n[ \"$1\" = -L ] || exit 9\ncat <<'END'\n{listing}END\nexit {status}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return install


@pytest.fixture
def no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "_gpus_by_nvml", list)
    monkeypatch.setattr(devices, "has_mps", lambda: False)


def test_auto_takes_every_gpu_by_uuid(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(TWO)
    slots = devices.make_slots(RunConfig())
    assert [slot.device for slot in slots] == [f"cuda:{A}", f"cuda:{B}"]
    assert [slot.name for slot in slots] == ["cuda 0: NVIDIA H200", "cuda 1: NVIDIA H200"]
    assert [slot.threads for slot in slots] == [4, 4]
    assert slots[0].memory_fraction is None


@pytest.mark.usefixtures("no_gpu")
def test_auto_takes_mps_then_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {slot.device for slot in devices.make_slots(RunConfig())} == {"cpu"}
    monkeypatch.setattr(devices, "has_mps", lambda: True)
    assert [slot.device for slot in devices.make_slots(RunConfig())] == ["mps"]


def test_a_broken_driver_counts_as_no_gpu(nvidia_smi: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the driver\n", 9)
    monkeypatch.setattr(devices, "_gpus_by_nvml", list)
    monkeypatch.setattr(devices, "has_mps", lambda: False)
    assert devices.find_devices("auto") == [("cpu", "cpu")]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("1", [B]),
        ("1,0", [B, A]),
        (B, [B]),
        ("GPU-aab", [B]),
        ("0,7,1", [A]),  # CUDA stops at the first entry that names nothing
        ("", []),
        ("-1", []),
        ("GPU-aa", []),  # the beginning of two UUIDs names nothing
        ("0,0", [A]),
        ("one", []),
        ("1.5", []),
    ],
)
def test_an_inherited_mask_is_honoured(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, mask: str, expected: list[str]
) -> None:
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [gpu.uuid for gpu in devices.visible_gpus()] == expected


def test_indices_count_visible_devices(nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [slot.device for slot in devices.make_slots(RunConfig(devices=(0,)))] == [f"cuda:{B}"]
    with pytest.raises(
        PreflightError, match=r"run.devices: 1: no such GPU .*CUDA_VISIBLE_DEVICES: 0 = NVIDIA H200 GPU-aab"
    ):
        devices.make_slots(RunConfig(devices=(1,)))


def test_a_sliced_gpu_counts_as_its_slices(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(SLICED)
    found = devices.all_gpus()
    assert [gpu.index for gpu in found] == ["0:0", "0:1", "1"]
    assert [gpu.uuid[:5] for gpu in found] == ["MIG-1", "MIG-2", "GPU-a"]
    assert found[1].name == "NVIDIA A100-SXM4-40GB MIG"


@pytest.mark.parametrize(
    ("mask", "expected"), [("0", ["MIG-1"]), ("1,0", ["GPU-a", "MIG-1"]), ("MIG-2222", ["MIG-2"]), ("0:1", ["MIG-2"])]
)
def test_a_mask_over_slices_means_what_cuda_takes_it_for(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, mask: str, expected: list[str]
) -> None:
    nvidia_smi(SLICED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", mask)
    assert [gpu.uuid[:5] for gpu in devices.visible_gpus()] == expected


def test_a_torch_without_cuda_has_no_use_for_a_gpu(
    nvidia_smi: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(TWO)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('nobody imports torch here')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    version = tmp_path / "torch" / "version.py"
    version.write_text("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n")
    assert devices.find_devices("auto") == [("cpu", "cpu")]
    with pytest.raises(PreflightError, match=r"^run.devices: 1: the torch that is installed was built without CUDA$"):
        devices.find_devices((1,))
    version.write_text("__version__ = '2.13.0'\ncuda: Optional[str] = '12.9'\nhip: Optional[str] = None\n")
    assert len(devices.find_devices("auto")) == 2


class Nvml:
    """As much of pynvml as is used, over GPUs that are dicts; `None` has fallen off the bus."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: dict[str, Any] | None, works: bool = True) -> None:
        self.gpus, self.works = gpus, works

    def nvmlInit(self) -> None:  # noqa: N802 - NVML's names
        if not self.works:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:  # noqa: N802
        found = self.gpus[index]
        if found is None:
            raise self.NVMLError("GPU is lost")
        return found

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> dict[str, Any]:  # noqa: N802
        known = [gpu for gpu in self.gpus if gpu is not None]
        for gpu in [*known, *(part for whole in known for part in whole.get("slices", []) if part)]:
            if gpu["uuid"] == uuid:
                return gpu
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> str | bytes:  # noqa: N802
        return handle.get("name", "NVIDIA H200")

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> str | bytes:  # noqa: N802
        return handle["uuid"]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:  # noqa: N802
        if "slices" not in handle:
            raise self.NVMLError("Not Supported")
        return len(handle["slices"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], number: int) -> dict[str, Any]:  # noqa: N802
        found: dict[str, Any] | None = handle["slices"][number]
        if found is None:
            raise self.NVMLError("Not Found")
        return found

    def nvmlDeviceGetComputeRunningProcesses(self, handle: dict[str, Any]) -> list[SimpleNamespace]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in handle.get("pids", [])]


@pytest.fixture
def nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Nvml], None]:
    """Puts a pynvml where there is no nvidia-smi."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda fake: monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]


def test_nvml_is_asked_where_there_is_no_nvidia_smi(nvml: Callable[[Nvml], None]) -> None:
    parts = [{"uuid": "MIG-1"}, None, {"uuid": b"MIG-2"}]
    nvml(Nvml({"uuid": A}, None, {"uuid": b"GPU-old", "name": b"Tesla V100"}, {"uuid": B, "slices": parts}))
    found = [(gpu.index, gpu.uuid, gpu.name) for gpu in devices.all_gpus()]
    assert found == [
        ("0", A, "NVIDIA H200"),
        ("2", "GPU-old", "Tesla V100"),
        ("3:0", "MIG-1", "NVIDIA H200 MIG"),
        ("3:2", "MIG-2", "NVIDIA H200 MIG"),
    ]
    nvml(Nvml({"uuid": A}, works=False))
    assert devices.all_gpus() == []


def test_a_dead_workers_memory_is_asked_of_its_own_device(nvml: Callable[[Nvml], None]) -> None:
    nvml(Nvml({"uuid": A, "pids": [7]}, {"uuid": B, "slices": [{"uuid": "MIG-1", "pids": [8]}]}))
    assert devices.uses_gpu(7, f"cuda:{A}")
    assert not devices.uses_gpu(8, f"cuda:{A}")
    assert devices.uses_gpu(8, "cuda:MIG-1")
    assert not devices.uses_gpu(7, "cuda:GPU-gone")
    assert not devices.uses_gpu(7, "cpu")
    nvml(Nvml({"uuid": A, "pids": [7]}, works=False))
    assert not devices.uses_gpu(7, f"cuda:{A}")


def test_a_slice_that_no_tool_lists_is_believed(
    nvidia_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(TWO)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-33333333")
    assert [slot.device for slot in devices.make_slots(RunConfig())] == ["cuda:MIG-33333333"]


def test_lists_name_gpus_by_index_or_uuid(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(TWO)
    assert [d for d, _ in devices.find_devices((1, A))] == [f"cuda:{B}", f"cuda:{A}"]
    assert [d for d, _ in devices.find_devices(("1",))] == [f"cuda:{B}"]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ((3,), r"3: no such GPU \(there are: 0 = NVIDIA H200 GPU-aaaa1111.*, 1 = NVIDIA H200 GPU-aabb2222"),
        (("GPU-zz",), r"GPU-zz: no such GPU"),
        (("GPU-aa",), r"GPU-aa: the beginning of several UUIDs"),
        ((0, A), r"GPU-aaaa1111.*: named twice"),
        ((), r"the list is empty"),
        (("cpu", "cpu"), r"cpu: a list names GPUs; write devices: cpu"),
        ((0, "cpu"), r"cpu: a list names GPUs"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(
    nvidia_smi: Callable[[str], None], wanted: tuple[int | str, ...], says: str
) -> None:
    nvidia_smi(TWO)
    with pytest.raises(PreflightError, match=rf"^run\.devices: {says}") as error:
        devices.make_slots(RunConfig(devices=wanted))
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_gpu")
def test_asking_for_a_gpu_or_mps_without_one_says_what_there_is() -> None:
    with pytest.raises(PreflightError, match=r"0: no such GPU \(no GPU was found, only the cpu\)"):
        devices.make_slots(RunConfig(devices=(0,)))
    with pytest.raises(PreflightError, match="mps: not available on this machine"):
        devices.make_slots(RunConfig(devices="mps"))


def test_per_device_divides_memory_and_cores(nvidia_smi: Callable[[str], None]) -> None:
    nvidia_smi(TWO)
    slots = devices.make_slots(RunConfig(per_device=2))
    assert [slot.id for slot in slots] == [0, 1, 2, 3]
    assert [slot.device for slot in slots] == [f"cuda:{A}"] * 2 + [f"cuda:{B}"] * 2
    assert {slot.threads for slot in slots} == {2}
    assert {slot.memory_fraction for slot in slots} == {0.475}
    assert slots[1].name == "cuda 0: NVIDIA H200 (2/2)"


@pytest.mark.parametrize(("per_device", "slots", "threads"), [(None, 4, 2), (8, 8, 1), (16, 16, 1), (1, 1, 8)])
def test_cpu_slots_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, per_device: int | None, slots: int, threads: int
) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 8)
    made = devices.make_slots(RunConfig(devices="cpu", per_device=per_device))
    assert (len(made), {slot.threads for slot in made}) == (slots, {threads})
    assert all(slot.memory_fraction is None for slot in made)


@pytest.mark.parametrize(("per_device", "slots"), [(None, 2), (1, 1), (4, 4)])
def test_the_number_of_threads_may_be_given(
    monkeypatch: pytest.MonkeyPatch, per_device: int | None, slots: int
) -> None:
    monkeypatch.setattr(devices, "count_cores", lambda: 8)
    made = devices.make_slots(RunConfig(devices="cpu", per_device=per_device, threads=4))
    assert [slot.threads for slot in made] == [4] * slots


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", 2**20)]
)
def test_a_containers_quota_counts(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores_of_this_process.cgroup_quota(tmp_path / "cpu.max") == cores
    assert cores_of_this_process.cgroup_quota(tmp_path / "absent") == 2**20
