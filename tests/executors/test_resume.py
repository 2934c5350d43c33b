"""The real trial in real processes: whatever kills it, its numbers and weights are those of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drive import drive_one, trial
from safetensors.torch import load_file

from saebench.executors import ExitMessage
from saebench.executors.local import LocalExecutor
from saebench.runs.events import Event, Verdict, read
from saebench.runs.paths import TrialPaths
from saebench.sweep_config import RunConfig


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalExecutor]:
    run = RunConfig(devices="cpu", per_device=1)
    executor = LocalExecutor(run, tmp_path_factory.mktemp("cache"), "real_trial:trains")
    yield executor
    executor.close()


def history(paths: TrialPaths) -> list[tuple[str, int, dict[str, float]]]:
    events = [event for event, _ in read(paths.events) if event.type in ("step", "eval", "done")]
    return [(e.type, e.samples, {k: v for k, v in e.values.items() if not k.startswith("system/")}) for e in events]


def assert_same(one: TrialPaths, other: TrialPaths) -> None:
    assert history(one) == history(other)
    for name in ("sae/sae.safetensors", "evaluation.safetensors"):
        ours, theirs = load_file(one.root / name), load_file(other.root / name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours.keys() | theirs.keys())


def test_kill_9_wherever_it_strikes(real: LocalExecutor, tmp_path: Path) -> None:
    undisturbed = trial(tmp_path / "undisturbed", "trains")
    assert drive_one(real, undisturbed).exit.detail == "done"
    chance, pids = random.Random(4), list[int]()
    for number in range(4):
        left = chance.randrange(2, 25)

        def strike(_: int, event: Event) -> Verdict:
            nonlocal left
            pids.extend([event.info["pid"]] if event.type == "start" else [])
            left -= 1
            if left == 0:
                os.kill(pids[-1], signal.SIGKILL)
            return Verdict.GO

        ended = drive_one(real, trial(tmp_path, "trains", attempt=number + 1), strike)
        assert ended.exit.kind == "host_oom"
    last = drive_one(real, trial(tmp_path, "trains", attempt=5))
    assert last.exit == ExitMessage(0, None, "done")
    assert last.events[0].samples > 0, "it began from scratch"
    assert_same(trial(tmp_path, "trains").paths, undisturbed.paths)


def test_leaving_on_request_and_on_a_verdict(real: LocalExecutor, tmp_path: Path) -> None:
    def leave(number: int, event: Event) -> Verdict:
        if event.type == "step" and event.samples > 1000:
            real.stop(number, "leave")
        return Verdict.GO

    first = drive_one(real, trial(tmp_path, "trains"), leave)
    assert first.exit == ExitMessage(0, None, "leave")
    second = drive_one(
        real,
        trial(tmp_path, "trains", attempt=2),
        lambda _, event: Verdict.LEAVE if event.samples == 3000 else Verdict.GO,
    )
    assert second.events[0].samples == first.events[-1].samples
    third = drive_one(real, trial(tmp_path, "trains", attempt=3))
    assert third.exit == ExitMessage(0, None, "done")
    undisturbed = trial(tmp_path / "undisturbed", "trains")
    drive_one(real, undisturbed)
    assert_same(trial(tmp_path, "trains").paths, undisturbed.paths)


def test_a_pruned_trial_leaves_its_sae(real: LocalExecutor, tmp_path: Path) -> None:
    attempt = trial(tmp_path, "trains")
    ended = drive_one(real, attempt, lambda _, event: Verdict.PRUNE if event.samples == 1000 else Verdict.GO)
    assert ended.exit == ExitMessage(0, None, "prune")
    assert (attempt.paths.sae / "sae.json").exists()
    assert attempt.paths.evaluation.exists()
