"""status, ls, logs, stop and retry, by the files of a sweep that somebody else runs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from fakes import trial_config

from saebench.cli import cli, show
from saebench.errors import UserError
from saebench.runs.durable import write_json
from saebench.runs.events import Event, EventLog
from saebench.runs.holder import this_process
from saebench.runs.paths import SweepPaths
from saebench.runs.preparing import Preparing, PreparingFile
from saebench.runs.state import AttemptRecord, TrialState, read_state
from saebench.spec import parse_spec
from saebench.terminal.picture import encoding_line

SPEC: dict[str, Any] = {
    "name": "toy",
    "data": {"model": "all-MiniLM-L6-v2", "dataset": {"path": "some/where"}, "num_examples": 1000},
    "sae": [{"type": "topk", "k": [4, 8], "dict_size": 64}],
    "train": {"samples": 400, "batch_size": 10, "lr": 0.01},
    "seeds": [0, 1],
}


@pytest.fixture
def paths(tmp_path: Path) -> SweepPaths:
    """A sweep of five trials, one in every state."""
    paths = SweepPaths(tmp_path / "saebench-runs" / "toy")
    write_json(paths.lock, {"spec": parse_spec(SPEC).plain(), "d_in": 384, "created": "2026-01-01T00:00:00+0000"})
    for number, state in enumerate(("complete", "pruned", "failed", "running", "interrupted")):
        made = TrialState(number, "topk-k4-n64", "p", 0, 400, state)  # type: ignore[arg-type]
        made.attempts = [AttemptRecord(1, "cpu", "cpu", time.time() - 60, None if state == "running" else time.time())]
        trial = paths.trial(number)
        write_json(trial.config, trial_config(number).model_dump(mode="json"))
        if state == "failed":
            made.reason, made.kind = "diverged: train/loss is nan", "diverged"
        if state == "pruned":
            made.judged = 100
            made.verdict = {"verdict": "prune", "samples": 100, "pruner": "median", "value": 0.5, "threshold": 0.4}
        made.write(trial)
        log = EventLog(trial.events)
        log.append(Event("step", 120, {"train/fvu": 0.25, "train/l0": 4.0}))
        log.close()
        trial.log.write_text(f"trial {number} says hello\n")
    return paths


@pytest.fixture
def held(paths: SweepPaths) -> Iterator[None]:
    """A scheduler (this process) runs it."""
    write_json(paths.holder, {**this_process(), "since": time.time() - 60, "at": "2026-01-01T00:00:00+0000"})
    yield
    paths.holder.unlink(missing_ok=True)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def complaint(*arguments: str) -> str:
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert error.value.exit_code == 2
    assert "\n" not in str(error.value)
    return str(error.value)


def test_status_shows_everything_of_the_last_sweep(paths: SweepPaths) -> None:
    text = call("status").output
    for words in (
        f"{paths.root}: no scheduler is running",
        "3 trials of at most 8  1 complete  1 pruned  1 failed  1 running  1 interrupted",
        "0003",
        "0.25",
        "0001: FVU 0.5 at 25% of the budget, median of its peers 0.4",
        "0002: diverged: train/loss is nan",
    ):
        assert words in text, text


@pytest.mark.usefixtures("held")
def test_status_names_who_works_on_it_and_the_pace(paths: SweepPaths) -> None:
    text = call("status", "toy").output
    assert f"process {os.getpid()} on" in text
    assert "3 trials/min" in text
    assert paths.name in text


@pytest.mark.usefixtures("held")
def test_status_as_json(paths: SweepPaths) -> None:
    found = json.loads(call("status", str(paths.root), "--json").output)
    assert found["counts"] == {"complete": 1, "pruned": 1, "failed": 1, "running": 1, "interrupted": 1}
    assert found["planned"] == 8, "five there; the other seed of k = 4, both seeds of k = 8"
    assert found["scheduler"]["pid"] == os.getpid()
    assert found["running"][0]["samples"] == 120
    assert found["failures"] == {"0002": "diverged: train/loss is nan"}
    assert [t["state"] for t in found["trials"]] == ["complete", "pruned", "failed", "running", "interrupted"]


def test_status_watch_ends_when_nobody_works_on_it(paths: SweepPaths) -> None:
    assert f"\n{paths.root}: no scheduler" in call("status", "--watch").output


def test_ls(paths: SweepPaths, tmp_path: Path) -> None:
    (tmp_path / "saebench-runs" / "not-a-sweep").mkdir()
    text = call("ls").output
    assert "toy" in text
    assert "1 complete" in text
    assert "not-a-sweep" not in text
    assert json.loads(call("ls", "--json").output)[0]["root"] == str(paths.root)
    assert "no sweeps" in call("ls", "--runs-dir", str(tmp_path / "empty")).output
    (tmp_path / "file").touch()
    assert isinstance(CliRunner().invoke(cli, ["ls", "--runs-dir", str(tmp_path / "file")]).exception, OSError)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize("which", [["3"], ["0003"], ["toy/3"], ["3", "--sweep", "toy"]], ids=str)
def test_logs(which: list[str]) -> None:
    assert call("logs", *which).output == "trial 3 says hello\n"


@pytest.mark.usefixtures("held")
def test_logs_follow_until_the_trial_ends(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(_: float) -> None:
        with paths.trial(3).log.open("a") as log:
            log.write("more\n")
        state = read_state(paths.trial(3))
        assert state is not None
        state.state = "complete"
        state.write(paths.trial(3))

    monkeypatch.setattr(show.time, "sleep", later)
    assert call("logs", "3", "-f").output == "trial 3 says hello\nmore\n"


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize(("options", "text"), [([], "leave"), (["--now"], "now")])
def test_stop_asks_the_scheduler(paths: SweepPaths, options: list[str], text: str) -> None:
    assert "asked process" in call("stop", "toy", *options).output
    assert paths.stop.read_text() == text


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("options", [[], ["--failed"], ["--trial", "2"]], ids=str)
def test_retry_hands_failed_trials_to_a_running_scheduler(paths: SweepPaths, options: list[str]) -> None:
    assert "retries 1 trial" in call("retry", "toy", *options).output
    assert json.loads(paths.retry.read_text()) == [2]


def test_retry_runs_a_sweep_that_nobody_works_on(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Result:
        exit_code = 3

    def run_sweep(spec: Any, **named: Any) -> Result:
        seen.update(named, spec=spec)
        return Result()

    monkeypatch.setattr("saebench.sweep.run_sweep", run_sweep)
    assert call("retry", "toy").exit_code == 3
    assert seen["spec"].plain() == parse_spec(SPEC).plain()
    assert seen["runs_dir"] == paths.root.parent
    assert json.loads(paths.retry.read_text()) == [2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["status", "nosuch"], "nosuch: no such sweep"),
        (["stop", "toy"], "toy: no scheduler is running"),
        (["logs", "99"], "no trial '99' (there: 0 to 4)"),
        (["logs", "x"], "no trial 'x'"),
        (["logs", "\u00b2"], "no trial"),
        (["logs", "nosuch/1"], "nosuch: no such sweep"),
        (["retry", "--trial", "0"], "trial 0: complete; only failed trials can be retried"),
        (["retry", "--trial", "77"], "trial 77: does not exist; only failed trials can be retried"),
        (["retry", "--failed", "--trial", "2"], "give one of the two"),
        (["retry", "renamed"], "renamed: the folder of the sweep toy was renamed; rename it back"),
    ],
    ids=str,
)
def test_bad_input_is_one_line(paths: SweepPaths, arguments: list[str], says: str) -> None:
    shutil.copytree(paths.root, paths.root.with_name("renamed"))
    assert says in complaint(*arguments)


def test_a_lock_that_cannot_be_read_hides_no_other_sweep(paths: SweepPaths) -> None:
    broken = paths.root.with_name("broken")
    broken.mkdir()
    (broken / "lock.json").write_text("{")
    (paths.root.parent / "dangling").symlink_to("nowhere")
    found = call("ls")
    assert found.exit_code == 0
    assert {line.split()[0] for line in found.stdout.splitlines()[1:]} >= {"toy", "broken"}
    assert "broken/lock.json: is not JSON" in found.stderr


def test_a_sweep_that_gets_its_embeddings_ready_can_be_seen_and_stopped(paths: SweepPaths) -> None:
    """Encoding takes longest, and there is no lock.json yet."""
    early = SweepPaths(paths.root.with_name("early"))
    early.root.mkdir()
    assert "no such sweep" in complaint("status", "early")
    write_json(early.holder, {**this_process(), "since": time.time(), "at": "2026-01-01T00:00:00+0000"})
    assert "preparing embeddings; no trial has begun" in call("status", "early").output
    assert json.loads(call("status", "early", "--json").output)["scheduler"]["pid"] == os.getpid()
    assert "early" in call("ls").output
    assert "asked process" in call("stop", "early").output
    assert early.stop.read_text() == "leave"
    assert "no trial has failed" in complaint("retry", "early")


def test_status_says_of_encoding_what_the_live_view_says(paths: SweepPaths) -> None:
    """2,400 of 20,000 texts at 220 a second: 80 seconds left. A damaged file says nothing; without a scheduler the
    file of one that was killed does not count."""
    early = SweepPaths(paths.root.with_name("early"))
    write_json(early.holder, {**this_process(), "since": time.time(), "at": "2026-01-01T00:00:00+0000"})
    PreparingFile(early).write(now := Preparing("encoding", 2_400, 20_000, 220.0, ""))
    PreparingFile(early).write(Preparing("texts", 1, None, 0.0, ""))
    file = PreparingFile(early)
    file.write(now)
    file.write(Preparing("encoding", 2_401, 20_000, 220.0, ""))  # within the same second: not written
    said = call("status", "early").output
    assert encoding_line(now) in " ".join(said.split())
    assert "2,400 of 20,000 texts, 220 a second, about 80 s left, done around" in encoding_line(now)
    found = json.loads(call("status", "early", "--json").output)["preparing"]
    assert (found["done"], found["seconds_left"]) == (2_400, 80.0)
    early.preparing.write_text('{"stage": 7')
    assert json.loads(call("status", "early", "--json").output)["preparing"] is None
    file.remove()
    assert not early.preparing.exists()


def test_no_sweeps_at_all(tmp_path: Path) -> None:
    assert "no sweeps" in complaint("status", "--runs-dir", str(tmp_path))


def test_the_sweep_that_changed_last_is_meant(paths: SweepPaths, tmp_path: Path) -> None:
    older = tmp_path / "saebench-runs" / "older" / "lock.json"
    write_json(older, {"spec": {}})
    os.utime(older, (1, 1))
    found: Callable[..., SweepPaths] = show.find_sweep
    assert found(None, None).name == "toy"
    assert found("older", None).root == older.parent
    assert found(str(paths.root), None).name == "toy"


def test_status_of_very_many_trials_holds_few_at_once(paths: SweepPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 trials, a kilobyte each: what is kept of one while the others are read is its row."""
    import tracemalloc

    def many(*_: Any) -> Iterator[TrialState]:
        for number in range(20_000):
            yield TrialState(number, "topk-k4-n64", "p", 0, 400, "complete", reason=f"{number}" * 200)

    monkeypatch.setattr("saebench.runs.board.read_states", many)
    monkeypatch.setattr("saebench.cli.show.echo", lambda *_, **__: None)
    tracemalloc.start()
    call("status", str(paths.root), "--json")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 30e6, "all at once would be 80 MB"
