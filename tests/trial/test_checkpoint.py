from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from saebench.trial import checkpoint


def state(value: float) -> checkpoint.State:
    tensors = {"w": torch.full((3, 2), value), "n": torch.tensor([7], dtype=torch.int64), "scalar": torch.tensor(value)}
    return tensors, {"samples": value, "note": "ä", "numbers": [0.1, 2]}


def same(a: checkpoint.State, b: checkpoint.State) -> bool:
    return a[1] == b[1] and a[0].keys() == b[0].keys() and all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    place = checkpoint.save(tmp_path, 300, state(0.1))
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert same(found[0], state(0.1))
    assert found[1] == place == tmp_path / "000000000300"


def test_there_may_be_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "absent") is None


def test_the_newest_two_are_kept_and_the_newest_is_loaded(tmp_path: Path) -> None:
    (tmp_path / ".000000000050.1.tmp").mkdir()  # of a worker that was killed while it wrote
    for samples in (100, 200, 1000):
        checkpoint.save(tmp_path, samples, state(samples))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000000200", "000000001000"]
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert found[0][1]["samples"] == 1000


def truncate(place: Path, name: str) -> None:
    data = (place / name).read_bytes()
    (place / name).write_bytes(data[: len(data) // 2])


def flip_a_bit(place: Path, name: str) -> None:
    data = bytearray((place / name).read_bytes())
    data[-8] ^= 1
    (place / name).write_bytes(data)


def remove(place: Path, name: str) -> None:
    (place / name).unlink()


def change_a_value(place: Path, _: str) -> None:
    written = json.loads((place / "state.json").read_text())
    written["values"] = written["values"].replace("200", "201")
    (place / "state.json").write_text(json.dumps(written))


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, remove, change_a_value])
@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_the_one_before_serves_where_the_newest_is_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: object, name: str
) -> None:
    checkpoint.save(tmp_path, 100, state(100))
    newest = checkpoint.save(tmp_path, 200, state(200))
    damage(newest, name)  # type: ignore[operator]
    found = checkpoint.load(tmp_path)
    assert found is not None
    assert same(found[0], state(100))
    assert "checkpoint 000000000200 is skipped" in capsys.readouterr().err
    checkpoint.save(tmp_path, 200, state(200))
    again = checkpoint.load(tmp_path)
    assert again is not None
    assert same(again[0], state(200))


def test_none_is_left_where_all_are_damaged(tmp_path: Path) -> None:
    for samples in (100, 200):
        truncate(checkpoint.save(tmp_path, samples, state(samples)), "tensors.safetensors")
    assert checkpoint.load(tmp_path) is None


def test_one_that_is_not_usable_is_left_out(tmp_path: Path) -> None:
    for samples in (100, 200):
        checkpoint.save(tmp_path, samples, state(samples))
    found = checkpoint.load(tmp_path, lambda values: values["samples"] < 150)
    assert found is not None
    assert found[0][1]["samples"] == 100


def test_the_same_place_is_not_written_twice(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 100, state(1))
    before = (tmp_path / "000000000100" / "state.json").stat().st_mtime_ns
    checkpoint.save(tmp_path, 100, state(1))
    assert (tmp_path / "000000000100" / "state.json").stat().st_mtime_ns == before


def draw() -> list[float]:
    return [*torch.rand(2).tolist(), torch.randn(1).item(), random.gauss(0, 1), float(np.random.normal())]


def test_global_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    checkpoint.seed_generators(3)
    first = draw()
    checkpoint.save(tmp_path, 1, checkpoint.generator_state(torch.device("cpu")))
    expected = [draw(), draw()]
    found = checkpoint.load(tmp_path)
    assert found is not None
    checkpoint.restore_generators(*found[0], torch.device("cpu"))
    assert [draw(), draw()] == expected
    checkpoint.seed_generators(3)
    assert draw() == first
