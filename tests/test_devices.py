from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from saebench import cores as cores_of_this_process
from saebench import devices
from saebench.config import RunConfig
from saebench.errors import PreflightError

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
    with pytest.raises(PreflightError, match=r"0: no such GPU \(there is no GPU, only the cpu\)"):
        devices.make_slots(RunConfig(devices=(0,)))
    with pytest.raises(PreflightError, match="mps: there is none on this machine"):
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


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2.0), ("150000 100000\n", 1.5), ("max 100000\n", 2**20)]
)
def test_a_containers_quota_counts(tmp_path: Path, text: str, cores: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores_of_this_process.cgroup_quota(tmp_path / "cpu.max") == cores
    assert cores_of_this_process.cgroup_quota(tmp_path / "absent") == 2**20
