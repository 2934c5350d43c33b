"""The table of texts and leaks."""

from __future__ import annotations

from saebench.report.sources import Source
from saebench.report.texts import texts

DATA = {"read": 1000, "duplicate": 3, "empty": 0, "truncated": 2, "max_seq_length": 256, "equal_test": 1,
        "near_test": 14, "near_test_of": 200, "near_above": 0.95, "model": "m"}  # fmt: skip


def table(lock: dict[str, object]):
    return texts([Source("demo", "", "", "", lock=lock)])


def test_every_count_stands_beside_what_it_is_of() -> None:
    found = table({"num_train": 747, "num_validation": 50, "num_test": 200, "data": DATA})
    counts = {row["what"]: (row["count"], row["of"]) for row in found.rows()}
    assert counts == {
        "training texts": (747, 997),
        "validation texts": (50, 997),
        "test texts": (200, 997),
        "equal to an earlier text": (3, 1000),
        "empty": (0, 1000),
        "cut at the encoder's limit": (2, 997),
        "test: same embedding as a training text": (1, 200),
        "test: a training text above cosine 0.95": (14, 200),
    }
    assert found.rows()[-1]["share"] == 0.07
    assert found.note.startswith("Of 1,000 rows read, left out: 3 equal to an earlier text. 2 texts were cut")
    assert "14 of 200 test texts have a training text at a cosine above 0.95" in found.note


def test_a_sweep_without_its_directory_or_with_a_damaged_lock_has_no_rows() -> None:
    for lock in ({}, {"data": 3}, {"data": {"read": "many", "near_test": None}, "num_test": "x"}):
        assert not table(lock).rows()
        assert table(lock).note == "These counts are in the sweep's directory, which is not on this machine."
