# ruff: noqa: ARG001, ARG002 (targets and lines have the signatures of their protocols)
from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from waiting import wait_for

from saebench.config import DataConfig, DatasetConfig, TopKConfig, TrainConfig, TrialConfig
from saebench.errors import DataError, SpecError, UserError
from saebench.runs.events import Event, EventLog, Verdict, read
from saebench.runs.paths import TrialPaths
from saebench.worker import Request, classify, failure, one_line, resolve, work
from saebench.worker.process import Lifeline
from saebench.worker.zygote import Zygote


class OutOfMemoryError(RuntimeError):
    """torch's has this name, and torch need not be imported to recognise it."""


def caused(error: Exception, by: Exception) -> Exception:
    error.__cause__ = by
    return error


def invalid() -> ValidationError:
    with pytest.raises(ValidationError) as error:
        TopKConfig(k=-1, dict_size=4)
    return error.value


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OutOfMemoryError("Tried to allocate"), "cuda_oom"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "cuda_oom"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "cuda_oom"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported elsewhere"), "cuda_oom"),
        (RuntimeError("Triton Error [CUDA]: out of memory"), "cuda_oom"),
        (caused(ValueError("while encoding"), OutOfMemoryError()), "cuda_oom"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "cuda_oom"),
        (MemoryError(), "host_oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "host_oom"),
        (OSError(12, "Cannot allocate memory"), "host_oom"),
        (FloatingPointError("overflow"), "diverged"),
        (UserError("no"), "user_error"),
        (DataError("no column text"), "user_error"),
        (ModuleNotFoundError("No module named 'x'"), "user_error"),
        (invalid(), "user_error"),
        (SyntaxError("x"), "user_error"),
        (AssertionError("Torch not compiled with CUDA enabled"), "user_error"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "user_error"),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "crash"),
        (RuntimeError("CUDA error: device-side assert triggered"), "crash"),
        (ValueError("shapes differ"), "crash"),
        (OSError(28, "No space left on device"), "no_space"),
        (KeyError("k"), "crash"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_exceptions_have_a_class(error: Exception, kind: str) -> None:
    assert classify(error) == kind


def test_a_real_cuda_out_of_memory_is_recognised() -> None:
    torch = pytest.importorskip("torch")
    assert classify(torch.OutOfMemoryError("x")) == "cuda_oom"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("\n  CUDA error: x\nCompile with TORCH_USE_CUDA_DSA"), "RuntimeError: CUDA error: x"),
        (ZeroDivisionError(), "ZeroDivisionError"),
        (SpecError("x.yaml:1:2: k: 0: rule"), "x.yaml:1:2: k: 0: rule"),
        (UserError(), "UserError"),
    ],
)
def test_a_message_is_one_line(error: Exception, line: str) -> None:
    assert one_line(error) == line


def test_a_failure_says_where_it_came_from() -> None:
    event = failure(caused(ValueError("outer"), RuntimeError("inner")), 300)
    assert (event.type, event.samples, event.info["kind"]) == ("failed", 300, "crash")
    assert "RuntimeError: inner" in event.info["traceback"]


@pytest.mark.parametrize("target", ["json:no_such", "json:__doc__"])
def test_a_target_that_is_no_function_is_the_users_error(target: str) -> None:
    with pytest.raises(UserError, match=f"{target}: no such function"):
        resolve(target)


class Deaf:
    """A line whose scheduler has one answer."""

    def __init__(self, verdict: Verdict = Verdict.GO) -> None:
        self.sent: list[Event] = []
        self.verdict = verdict

    def send(self, event: Event) -> None:
        self.sent.append(event)

    def wait(self, samples: int) -> Verdict:
        return self.verdict

    def pending(self) -> Verdict:
        return Verdict.GO


def request(folder: Path, target: str, attempt: int = 1) -> Request:
    config = TrialConfig(
        sweep="s",
        number=7,
        stratum="topk",
        point="p",
        seed=1,
        data=DataConfig(model="m", dataset=DatasetConfig(path="p"), num_examples=3),
        sae=TopKConfig(k=2, dict_size=8),
        train=TrainConfig(samples=20, lr=1e-3),
    )
    return Request(
        number=7,
        attempt=attempt,
        config=config.model_dump(mode="json"),
        root=str(folder / "0007"),
        cache_dir=str(folder / "cache"),
        target=target,
        device="cpu",
        threads=1,
        memory_fraction=None,
        environment={},
        sys_path=[],
    )


def test_a_request_survives_the_way(tmp_path: Path) -> None:
    first = request(tmp_path, "a:b")
    assert Request.from_json(first.to_json()) == first
    assert TrialConfig.model_validate(first.config).sae.width(384) == 8


heard: list[Any] = []


def listens(config: TrialConfig, paths: TrialPaths, device: str, report: Callable[[Event], Verdict], **_: Any) -> None:
    heard.append([report(Event("step", 5)), report(Event("eval", 10)), report(Event("done", 20))])


def test_only_evals_wait_for_a_verdict(tmp_path: Path) -> None:
    heard.clear()
    line = Deaf(Verdict.PRUNE)
    assert work(request(tmp_path, f"{__name__}:listens", attempt=3), line)
    assert heard == [[Verdict.GO, Verdict.PRUNE, Verdict.GO]]
    assert [(event.type, event.attempt) for event in line.sent] == [("step", 3), ("eval", 3), ("done", 3)]


def test_marks_on_record_are_passed_on_but_not_written_again(tmp_path: Path) -> None:
    """The scheduler may have died before it gave its verdict on them."""
    for _ in range(2):
        line = Deaf()
        work(request(tmp_path, f"{__name__}:listens"), line)
        assert len(line.sent) == 3
    assert len(list(read(tmp_path / "0007" / "events.jsonl"))) == 3


def fails(config: TrialConfig, paths: TrialPaths, device: str, report: Callable[[Event], Verdict], **_: Any) -> None:
    report(Event("step", 5))
    raise FloatingPointError("train/loss is nan")


def test_a_failure_is_recorded_sent_and_no_exception(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = Deaf()
    assert not work(request(tmp_path, f"{__name__}:fails"), line)
    assert [event.type for event in line.sent] == ["step", "failed"]
    assert line.sent[1].samples == 5
    assert [event for event, _ in read(tmp_path / "0007" / "events.jsonl")] == line.sent
    assert "FloatingPointError: train/loss is nan" in capsys.readouterr().err


def test_a_full_disk_does_not_hide_the_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(EventLog, "append", full)
    line = Deaf()
    assert not work(request(tmp_path, f"{__name__}:listens"), line)
    assert [event.info["message"] for event in line.sent] == ["OSError: [Errno 28] No space left on device"]


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Lifeline]]:
    """The scheduler's end, and a worker's lifeline with little patience."""
    ours, theirs = socket.socketpair()
    yield ours, Lifeline(theirs, verdict_wait=0.2, grace=1e6)
    ours.close()  # the lifeline's thread waits for its grace, which the test's process does not outlive


def tell(channel: socket.socket, verdict: Verdict, samples: int) -> None:
    channel.sendall(json.dumps({"verdict": verdict, "samples": samples}).encode() + b"\n")


def test_a_verdict_is_for_its_mark(ends: tuple[socket.socket, Lifeline]) -> None:
    ours, line = ends
    tell(ours, Verdict.GO, 10)
    begin = time.monotonic()
    assert line.wait(20) is Verdict.GO
    assert time.monotonic() - begin > 0.15, "the answer to 10 was taken for one to 20"
    tell(ours, Verdict.GO, 30)
    assert line.wait(30) is Verdict.GO


def test_a_late_prune_is_obeyed_at_the_next_step(ends: tuple[socket.socket, Lifeline]) -> None:
    ours, line = ends
    assert line.wait(10) is Verdict.GO
    tell(ours, Verdict.PRUNE, 10)
    wait_for(lambda: line.pending() is not Verdict.GO)
    assert line.pending() is Verdict.PRUNE
    assert line.wait(20) is Verdict.PRUNE


def test_the_schedulers_death_wakes_a_waiting_worker() -> None:
    ours, theirs = socket.socketpair()
    line = Lifeline(theirs, verdict_wait=60, grace=1e6)
    ours.close()
    assert line.wait(10) is Verdict.LEAVE
    assert line.pending() is Verdict.LEAVE
    line.send(Event("left", 10))  # nobody listens, and that is no error


def test_a_worker_that_does_not_leave_is_ended_after_its_grace() -> None:
    code = (
        "import socket, time\nfrom saebench.worker.process import Lifeline\nours, theirs = socket.socketpair()\n"
        "line = Lifeline(theirs, 1, 0.1)\nours.close()\ntime.sleep(600)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 1


def no_fork() -> int:
    raise OSError(11, "Resource temporarily unavailable")


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")
def test_a_fork_that_fails_is_one_trials_misfortune(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far, lifeline = socket.socketpair()
    zygote = Zygote.__new__(Zygote)
    zygote._channel, zygote._children, zygote._requests = theirs, {}, 0
    monkeypatch.setattr("os.fork", no_fork)
    socket.send_fds(ours, [request(tmp_path, "a:b").to_json()], [lifeline.fileno()])
    assert zygote._serve(), "it ended"
    said = json.loads(ours.recv(1000))
    assert said == {"refused": 1, "why": "[Errno 11] Resource temporarily unavailable"}
    for end in (ours, theirs, lifeline, far):
        end.close()
