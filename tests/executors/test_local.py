"""What only real processes can show: signals, the lifeline, environments, logs, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from drive import drive, drive_one, trial
from waiting import wait_for

from saebench.devices import Slot
from saebench.errors import PreflightError
from saebench.executors import EventMessage, ExitMessage
from saebench.executors.local import LocalExecutor, environment
from saebench.executors.spawner import ForkingSpawner, FreshSpawner, Spawner
from saebench.runs.events import Event, Verdict, read
from saebench.sweep_config import RunConfig

HERE = Path(__file__).parent


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def started(executor: LocalExecutor, workers: int = 1) -> list[dict[str, Any]]:
    """info of the next `start` events, of which one poll may return several."""
    found: list[dict[str, Any]] = []
    while len(found) < workers:
        for message in executor.poll(20):
            if isinstance(message, EventMessage) and message.event.type == "start":
                found.append(message.event.info)
            assert not isinstance(message, ExitMessage), message
    return found


def exit_of(executor: LocalExecutor) -> ExitMessage:
    while True:
        for message in executor.poll(20):
            if isinstance(message, ExitMessage):
                return message


def test_a_worker_killed_by_the_kernel_is_out_of_memory(local: LocalExecutor, tmp_path: Path) -> None:
    local.start(trial(tmp_path, "sleeps"), local.slots[0])
    os.kill(started(local)[0]["pid"], signal.SIGKILL)
    assert exit_of(local) == ExitMessage(0, "host_oom", "ended by SIGKILL, as the kernel does when memory runs out")


@pytest.mark.parametrize("how", ["stop", "signal"])
def test_the_exit_comes_when_the_whole_group_is_gone(local: LocalExecutor, tmp_path: Path, how: str) -> None:
    local.start(trial(tmp_path, "sleeps"), local.slots[0])
    [info] = started(local)
    assert lives(info["child"])
    if how == "stop":
        local.stop(0, "kill")
    else:
        os.kill(info["pid"], signal.SIGKILL)
    exit_of(local)
    assert not lives(info["pid"])
    assert not lives(info["child"])


def test_a_stopped_worker_can_be_killed(local: LocalExecutor, tmp_path: Path) -> None:
    local.start(trial(tmp_path, "sleeps"), local.slots[0])
    os.kill(started(local)[0]["pid"], signal.SIGSTOP)
    local.stop(0, "kill")
    assert exit_of(local) == ExitMessage(0, "killed", "killed")


def test_a_trial_killed_before_it_has_a_pid_ends(local: LocalExecutor, tmp_path: Path) -> None:
    local.start(trial(tmp_path, "sleeps"), local.slots[0])
    local.stop(0, "kill")
    assert exit_of(local).kind == "killed"


@pytest.mark.parametrize(
    ("toy", "kind", "detail"),
    [
        ("segfaults", "crash", "ended by SIGSEGV"),
        ("vanishes", "crash", "exited with status 0 but recorded neither a result nor a checkpoint"),
        ("runs_out_of_gpu_memory", "cuda_oom", "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"),
        ("done_then_killed", None, "done"),
    ],
)
def test_an_end_is_told_apart(local: LocalExecutor, tmp_path: Path, toy: str, kind: str | None, detail: str) -> None:
    assert drive_one(local, trial(tmp_path, toy)).exit == ExitMessage(0, kind, detail)  # type: ignore[arg-type]


def test_the_log_holds_output_errors_and_the_last_words_of_a_crash(local: LocalExecutor, tmp_path: Path) -> None:
    drive_one(local, trial(tmp_path, "world"))
    drive_one(local, trial(tmp_path, "segfaults", attempt=2))
    log = trial(tmp_path, "world").paths.log.read_text()
    assert re.search(r"^--- trial 0000 attempt 1 on cpu, pid \d+", log)
    assert "to the log\nerrors too\n--- trial 0000 attempt 2" in log
    assert "Fatal Python error: Segmentation fault" in log
    assert "toys.py" in log


def test_what_a_worker_sees_of_itself(local: LocalExecutor, tmp_path: Path) -> None:
    info = drive_one(local, trial(tmp_path, "world")).events[0].info
    assert info["device"] == "cpu"
    assert info["leader"]
    assert info["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert info["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert info["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert info["environment"]["OMP_NUM_THREADS"] == str(local.slots[0].threads) == str(info["torch_threads"])
    assert info["cuda"] is False, "the process that workers are forked from started CUDA"
    assert "pytest" not in info["main"]


def test_torch_gets_the_slots_share_of_the_cores(
    local: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_slots", (Slot(0, "cpu", "cpu", threads=3),))
    info = drive_one(local, trial(tmp_path, "world")).events[0].info
    assert (info["torch_threads"], info["environment"]["OMP_NUM_THREADS"]) == (3, "3")


def test_a_gpu_worker_sees_its_gpu_alone() -> None:
    seen = environment(Slot(0, "cuda:GPU-aaaa", "cuda 0", threads=4))
    assert (seen["CUDA_VISIBLE_DEVICES"], seen["OMP_NUM_THREADS"]) == ("GPU-aaaa", "4")


def test_a_gpu_slot_is_told_to_the_worker_as_cuda_0(local: LocalExecutor, tmp_path: Path) -> None:
    request = local._request(trial(tmp_path, "world"), Slot(0, "cuda:GPU-aaaa", "x", memory_fraction=0.475))
    assert (request.device, request.memory_fraction) == ("cuda:0", 0.475)


@pytest.mark.parametrize("patience", [60.0, 0.5])
def test_a_gpu_is_given_back_when_its_memory_is(
    local: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """A driver may count a dead process's memory for a while; one that always does costs seconds, not the GPU."""
    slot, counted = Slot(0, "cuda:GPU-aaaa", "cuda 0"), list[int]()
    nvml = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetComputeRunningProcesses=lambda gpu: (
            [SimpleNamespace(pid=pid) for pid in counted] if gpu == "GPU-aaaa" else []
        ),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)  # type: ignore[arg-type]
    monkeypatch.setattr(local, "_slots", (slot,))
    monkeypatch.setattr("saebench.executors.local.DRAIN", patience)
    local.start(trial(tmp_path, "sleeps"), slot)
    counted.append(started(local)[0]["pid"])
    local.stop(0, "kill")
    wait_for(lambda: not lives(counted[0]))
    if patience > 1:
        assert local.poll(0.5) == []
        with pytest.raises(RuntimeError, match="cuda 0 is not free"):
            local.start(trial(tmp_path, "quick", 1), slot)
        counted.clear()
    assert exit_of(local) == ExitMessage(0, "killed", "killed")


def test_a_device_that_is_not_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(PreflightError, match=r"run\.devices: 5: no such GPU"):
        LocalExecutor(RunConfig(devices=(5,)), tmp_path)


def test_a_hundred_trials_in_a_row_end_once_each(local: LocalExecutor, tmp_path: Path) -> None:
    drive_one(local, trial(tmp_path, "quick"))
    ended = drive(local, [trial(tmp_path, "quick", n) for n in range(1, 101)])
    assert sorted(ended) == list(range(1, 101))
    assert {one.exit.detail for one in ended.values()} == {"done"}


def test_a_worker_that_hears_nothing_goes_on(
    local: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = local._request
    monkeypatch.setattr(local, "_request", lambda *arguments: replace(patient(*arguments), verdict_wait=0.2))
    ended = drive_one(local, trial(tmp_path, "count", samples=20), lambda _, __: None)
    assert ended.exit.detail == "done"
    assert "no verdict at 10 samples after 0.2 s" in trial(tmp_path, "count").paths.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_worker_makes_it_checkpoint_and_leave(
    local: LocalExecutor, tmp_path: Path, number: int
) -> None:
    """As Slurm does to every process of a job."""

    def answer(_: int, event: Event) -> Verdict:
        if event.type == "checkpoint" and event.samples == 10:
            os.kill(pids[0], number)
        pids.extend([event.info["pid"]] if event.type == "start" else [])
        return Verdict.GO

    pids: list[int] = []
    attempt = trial(tmp_path, "count", samples=100_000)
    assert drive_one(local, attempt, answer).exit == ExitMessage(0, None, "leave")
    assert json.loads((attempt.paths.checkpoint / "state.json").read_text())["at"] >= 10


def zygote_of(executor: LocalExecutor) -> psutil.Process:
    return psutil.Process(executor._spawner._process.pid)  # type: ignore[attr-defined]


def test_a_killed_zygote_takes_its_workers_along_and_is_replaced(tmp_path: Path) -> None:
    executor = LocalExecutor(RunConfig(devices="cpu", per_device=2), tmp_path / "cache", "toys:play")
    try:
        executor.start(trial(tmp_path, "sleeps", 0), executor.slots[0])
        [info] = started(executor)
        zygote_of(executor).kill()
        gone = exit_of(executor)
        assert (gone.kind, gone.detail) == ("host_oom", "the process that workers are forked from was ended by SIGKILL")
        assert not lives(info["pid"])
        assert not lives(info["child"])
        assert drive_one(executor, trial(tmp_path, "quick", 1)).exit.detail == "done"
    finally:
        executor.close()


def test_signals_to_the_zygote_do_not_end_it(local: LocalExecutor, tmp_path: Path) -> None:
    drive_one(local, trial(tmp_path, "quick", 0))
    zygote = zygote_of(local)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        zygote.send_signal(number)
    drive_one(local, trial(tmp_path, "quick", 1))
    assert zygote_of(local).pid == zygote.pid


def test_an_environment_without_torch_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('no torch for you')")
    sys.path.insert(0, str(tmp_path))
    try:
        executor = LocalExecutor(RunConfig(devices="cpu", per_device=1), tmp_path / "cache", "toys:play")
        ended = drive_one(executor, trial(tmp_path, "quick"))
        executor.close()
    finally:
        sys.path.remove(str(tmp_path))
    assert ended.exit.kind == "user_error"
    assert ended.exit.detail.endswith("did not start: ImportError: no torch for you")


def test_a_target_that_is_not_there_is_the_users_error(
    local: LocalExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_target", "toys:no_such_toy")
    ended = drive_one(local, trial(tmp_path, "quick"))
    assert (ended.exit.kind, ended.exit.detail) == ("user_error", "toys:no_such_toy: no such function in toys")


@pytest.mark.parametrize("spawner", [ForkingSpawner, FreshSpawner])
def test_nothing_runs_after_close(tmp_path: Path, spawner: Callable[..., Spawner]) -> None:
    born = spawner("toys:play") if spawner is ForkingSpawner else spawner()
    executor = LocalExecutor(RunConfig(devices="cpu", per_device=2), tmp_path / "cache", "toys:play", born)
    for number, slot in enumerate(executor.slots):
        executor.start(trial(tmp_path, "sleeps", number), slot)
    workers = started(executor, 2)
    pids = {info["pid"] for info in workers} | {info["child"] for info in workers}
    pids |= {zygote_of(executor).pid} if spawner is ForkingSpawner else set()
    assert all(lives(pid) for pid in pids)
    executor.close()
    executor.close()
    assert not [pid for pid in pids if lives(pid)]


def test_closing_at_once_does_not_wait_for_imports(tmp_path: Path) -> None:
    executor = LocalExecutor(RunConfig(devices="cpu", per_device=2), tmp_path / "cache", "toys:play")
    executor.start(trial(tmp_path, "sleeps"), executor.slots[0])
    zygote = zygote_of(executor).pid
    os.kill(zygote, signal.SIGSTOP)  # its imports never end
    executor.close()
    assert not lives(zygote)


SCRIPT = """
import sys
print("the caller's main module runs", flush=True)
sys.path.insert(0, {here!r})
from pathlib import Path
from drive import trial
from saebench.sweep_config import RunConfig
from saebench.runs.events import Verdict
from saebench.executors.local import LocalExecutor
executor = LocalExecutor(RunConfig(devices="cpu", per_device=2), Path({folder!r}) / "cache", "toys:play")
executor.start(trial(Path({folder!r}), {toy!r}, samples=100_000), executor.slots[0])
while True:
    for message in executor.poll(10):
        print(type(message).__name__, getattr(message, "event", message), flush=True)
        executor.answer(0, Verdict.GO)
        if type(message).__name__ == "ExitMessage":
            {end}
"""


def caller(folder: Path, toy: str, end: str = "sys.exit(0)") -> subprocess.Popen[str]:
    """A script without a main guard that runs one trial."""
    script = folder / "script.py"
    script.write_text(SCRIPT.format(here=str(HERE), folder=str(folder), toy=toy, end=end))
    return subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    """And a script that forgets to close leaves nothing behind."""
    with caller(tmp_path, "world") as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert output.count("the caller's main module runs") == 1
    assert "detail='done'" in output


def test_code_from_the_command_line_can_start_workers(tmp_path: Path) -> None:
    code = SCRIPT.format(here=str(HERE), folder=str(tmp_path), toy="quick", end="sys.exit(executor.close())")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "detail='done'" in run.stdout


def test_workers_checkpoint_and_leave_when_the_scheduler_is_killed(tmp_path: Path) -> None:
    attempt = trial(tmp_path, "count")
    with caller(tmp_path, "count") as process:
        wait_for(attempt.paths.checkpoint.exists)
        worker = next(event for event, _ in read(attempt.paths.events) if event.type == "start").info["pid"]
        zygote = psutil.Process(worker).ppid()
        process.kill()
        wait_for(lambda: not lives(worker) and not lives(zygote))
    events = [event for event, _ in read(attempt.paths.events)]
    assert (events[-1].type, events[-1].info) == ("left", {"why": "leave"})
    assert json.loads((attempt.paths.checkpoint / "state.json").read_text())["at"] == events[-1].samples
