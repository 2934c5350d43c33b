"""The record of a trial: one line per mark, whatever tears it."""

from __future__ import annotations

from pathlib import Path

import pytest

from saebench.runs.events import Event, EventLog, read


def test_a_mark_is_recorded_once_however_often_it_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    assert log.append(Event("eval", 100, {"eval/fvu": 0.5}))
    log.close()
    again = EventLog(path)
    assert not again.append(Event("eval", 100, {"eval/fvu": 0.4}, attempt=2))
    assert again.append(Event("step", 100, {"train/loss": 1.0}))
    assert again.append(Event("start", 100))
    assert again.append(Event("start", 100))
    again.close()
    assert [(e.type, e.values.get("eval/fvu")) for e, _ in read(path)] == [
        ("eval", 0.5),
        ("step", None),
        ("start", None),
        ("start", None),
    ]


def test_a_torn_last_line_is_cut_off_and_recorded_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    whole = Event("step", 1, {"train/loss": 2.0}).to_line()
    path.write_text(whole + Event("step", 2, {"train/loss": 1.0}).to_line()[:-9])
    assert [e.samples for e, _ in read(path)] == [1]
    log = EventLog(path)
    assert path.read_text() == whole
    assert log.append(Event("step", 2, {"train/loss": 1.0}))
    log.close()
    assert [e.samples for e, _ in read(path)] == [1, 2]


def test_reading_goes_on_at_an_offset_and_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(Event("step", 1).to_line() + Event("step", 2).to_line())
    (_, first), (_, second) = list(read(path))
    assert [e.samples for e, _ in read(path, first)] == [2]
    with path.open("a") as file:
        file.write('{"type":"step","sam')
    assert list(read(path, second)) == []
    with path.open("a") as file:
        file.write('ples":3}\n')
    assert [e.samples for e, _ in read(path, second)] == [3]


def test_what_is_not_an_event_is_refused_by_name() -> None:
    for line in (
        '{"type":"step","samples":null}',
        "[" * 10_000,
        "5",
        "null",
        '{"type":"step","samples":1,"values":[1]}',
    ):
        with pytest.raises(ValueError, match="validation error for Event"):
            Event.from_line(line)


def test_a_line_with_one_byte_changed_is_no_event_and_hides_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    lines = [Event("step", n, {"train/loss": 2.5}).to_line() for n in (1, 2, 3)]
    for place in range(len(lines[1]) - 1):
        flipped = bytearray(lines[1].encode())
        flipped[place] ^= 1
        if b"\n" in flipped[:-1]:
            continue
        path.write_bytes(lines[0].encode() + flipped + lines[2].encode())
        found = {e.samples: e.values for e, _ in read(path)}
        assert found.pop(2, {"train/loss": 2.5}) == {"train/loss": 2.5}, "never another value"
        assert found == {1: {"train/loss": 2.5}, 3: {"train/loss": 2.5}}
