"""A sweep's directory may come from anybody: whatever its files hold, a command ends in a line, never in a traceback,
and what can be read is shown."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fakes import trial_config

from saebench.cli import cli
from saebench.errors import UserError
from saebench.plan import make_plan
from saebench.runs import events
from saebench.runs.board import Board, read_board
from saebench.runs.events import Event, EventLog
from saebench.runs.files import DamagedError, read_bytes, read_object
from saebench.runs.holder import hold_sweep_dir, holder
from saebench.runs.lock import Lock, read_lock, write_lock
from saebench.runs.paths import SweepPaths
from saebench.runs.state import AttemptRecord, TrialState, write_config
from saebench.scheduler.ledger import Ledger
from saebench.scheduler.recovery import recover
from saebench.spec import parse_spec
from saebench.study import Search

SPEC: dict[str, Any] = {
    "name": "toy",
    "data": {"model": "all-MiniLM-L6-v2", "dataset": {"path": "some/where"}, "num_examples": 1000},
    "sae": [{"type": "topk", "k": 4, "dict_size": 32}],
    "train": {"samples": 400, "batch_size": 10, "lr": 0.01},
}
BOMB = "[" * 100_000
NESTED = '{"a":' * 500 + "1" + "}" * 500
STATE = {"number": 0, "stratum": "s", "point": "p", "seed": 0, "total": 40, "state": "complete", "attempts": []}
PLANTED: dict[str, list[str]] = {
    "lock.json": [
        BOMB, NESTED, "5", "null", '"x"', "{}", '{"spec": 5, "d_in": 384}', '{"spec": {}, "d_in": "x"}',
        '{"spec": {"sae": 7}, "d_in": 384}', '{"spec": {"name": ["x"]}, "d_in": 384, "created": [1]}',
    ],
    "scheduler.json": [
        BOMB, NESTED, "5", "[]", '{"pid": "x", "host": [], "since": "noon", "at": 5, "born": null}',
        json.dumps({"pid": -1, "host": os.uname().nodename, "since": 1, "at": "now", "born": ""}),
        '{"pid": 99999999999999999999, "host": "h", "since": 1e999, "at": "\\u001b[31m", "born": "x"}',
    ],
    "trials/0000/state.json": [
        BOMB, NESTED, "5", "null", '"x"', "[]", "{}",
        *(json.dumps({**STATE, **change}) for change in (
            {"state": ["complete"]}, {"state": "odd"}, {"verdict": 5}, {"values": [1]}, {"number": 7}, {"attempts": 5},
            {"attempts": [{"attempt": 1, "slot": "[/]", "device": "d", "started": "yesterday"}]}, {"samples": None},
            {"files": {"x": 5}}, {"search": {"saebench.choice": 5}}, {"total": "many"},
        )),
    ],
    "trials/0000/config.json": [BOMB, NESTED, "5", "null", "{}", '{"sae": {"type": "nothing"}}'],
    "trials/0000/events.jsonl": [
        BOMB + "\n", NESTED + "\n", "5\n", '{"type": "eval", "samples": null}\n', "x" * 9_000_000,
        '{"type": "eval", "samples": 1, "values": []}\n', '{"type": "start", "samples": 0, "info": {"pid": "x"}}\n',
        '{"type": "start", "samples": 0, "info": {"pid": -5}}\n',
        '{"type": "done", "samples": 0, "info": {"files": 5}}\n',
    ],
    "optuna.journal": [
        BOMB + "\n", NESTED + "\n", "{}\n", '{"op_code": 0}\n', '{"op_code": "x"}\n',
        '{"op_code": 4, "worker_id": "w"}\n',
    ],
    "retry.json": [BOMB, NESTED, "null", "5", '["x"]', "{}", "[1.5]"],
    "stop": [BOMB, "\0\0", ""],
    "tracking.json": [BOMB, NESTED, "5", "null", "{}", '{"trials": 5}', '{"uri": 5, "trials": {"x": 1}}'],
}  # fmt: skip
CASES = [(name, number) for name, texts in PLANTED.items() for number in range(len(texts))]
COMMANDS = [["status"], ["status", "--json"], ["ls"], ["ls", "--json"], ["logs", "0"], ["retry"]]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepPaths:
    """Two trials of a sweep on which nobody works."""
    monkeypatch.setattr("os.fsync", lambda _: None)
    found = SweepPaths(tmp_path / "saebench-runs" / "toy")
    write_lock(found, Lock(name="toy", spec=parse_spec(SPEC).plain(), d_in=384))
    for number in (0, 1):
        trial = found.trial(number)
        write_config(trial, trial_config(number))
        state = TrialState(
            number, "topk-k4-n32", "p", 0, 40, "complete", attempts=[AttemptRecord(1, "cpu", "cpu", 1.0, 2.0)]
        )
        state.write(trial)
        log = EventLog(trial.events)
        log.append(Event("eval", 40, {"eval/fvu": 0.25}))
        log.close()
        trial.log.write_text("hello\n")
    return found


def run(*arguments: str) -> str:
    """What a command prints; a UserError is its line."""
    try:
        result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    except UserError as error:
        return str(error)
    return result.output


@pytest.mark.parametrize(("name", "number"), CASES)
def test_no_command_dies_of_a_planted_file(paths: SweepPaths, name: str, number: int) -> None:
    (paths.root / name).write_text(PLANTED[name][number])
    for command in COMMANDS:
        if command == ["retry"] and name not in ("lock.json", "trials/0000/state.json"):
            continue
        said = run(*command)
        if command == ["status"] and name.startswith("trials/0000"):
            assert "1 complete" in said or "2 complete" in said, "the other trial is shown"


@pytest.mark.parametrize(("name", "number"), [case for case in CASES if case[0] not in ("lock.json", "tracking.json")])
def test_no_start_dies_of_a_planted_file(paths: SweepPaths, name: str, number: int) -> None:
    (paths.root / name).write_text(PLANTED[name][number])

    class Deaf:
        def open(self, config: Any, tags: dict[str, str]) -> None: ...
        def close_trial(self, number: int, state: Any, reason: str, tags: dict[str, str]) -> None: ...
        def lag(self) -> tuple[int, str | None]:
            return 0, None

    with hold_sweep_dir(paths):
        search = Search(make_plan(parse_spec(SPEC), 384), paths.journal)
        ledger = Ledger(paths, search, Deaf(), Board("toy"))
        recover(ledger, search)


@pytest.mark.parametrize("name", [*PLANTED, "report"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_is_no_file_is_said_or_passed_over(paths: SweepPaths, name: str, kind: str) -> None:
    place = paths.root / name
    place.unlink(missing_ok=True)
    if kind == "folder":
        (place / "x").mkdir(parents=True)
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(paths.root / "nowhere")
    for command in COMMANDS[:5]:
        run(*command)


def test_folders_with_odd_names_are_no_trials(paths: SweepPaths) -> None:
    for name in ("²", "٣٣٣٣", "12", "0007x", "-001", "0" * 40, "[red]x"):
        (paths.root / "trials" / name).mkdir()
    assert [trial.number for trial in paths.trials()] == [0, 1]
    assert read_board(paths).counts["complete"] == 2


def test_size_and_depth_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text('{"a": "' + "x" * 1000 + '"}')
    with pytest.raises(DamagedError, match=r"x\.json: has 1,009 bytes; at most 1,000 are read"):
        read_object(file, 1000)
    file.write_text(NESTED)
    with pytest.raises(DamagedError, match="recursion limit exceeded"):
        read_object(file)
    with pytest.raises(DamagedError, match="is not a file"):
        read_bytes(tmp_path)


def test_a_file_that_cannot_be_read_is_one_line_and_the_rest_is_shown(paths: SweepPaths) -> None:
    paths.trial(0).state.write_text(BOMB)
    result = CliRunner().invoke(cli, ["status", "--json"], catch_exceptions=False)
    assert len(result.stderr.strip().splitlines()) == 1
    assert str(paths.trial(0).state) in result.stderr
    assert [trial["number"] for trial in json.loads(result.stdout)["trials"]] == [1]


def test_a_holder_that_is_nonsense_holds_nothing(paths: SweepPaths) -> None:
    for text in PLANTED["scheduler.json"][:5]:
        paths.holder.write_text(text)
        assert holder(paths) is None


def test_a_lock_with_another_sum_was_changed(paths: SweepPaths) -> None:
    text = paths.lock.read_text()
    paths.lock.write_text(text.replace('"samples": 400', '"samples": 401'))
    with pytest.raises(UserError, match=r"lock\.json: was changed after it was written: its crc32"):
        read_lock(paths)
    paths.lock.write_text(text.replace(" ", ""))
    assert read_lock(paths) is not None, "white space is no content"


def test_a_line_that_is_too_long_hides_no_other(paths: SweepPaths) -> None:
    with paths.trial(0).events.open("a") as file:
        file.write("x" * 9_000_000 + "\n" + Event("done", 40).to_line())
    assert [event.type for event, _ in events.read(paths.trial(0).events)] == ["eval", "done"]
    assert events.damaged(paths.trial(0).events) == 1
    shutil.rmtree(paths.root)
