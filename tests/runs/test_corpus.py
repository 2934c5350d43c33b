"""What a sweep says about its texts."""

from __future__ import annotations

from saebench.runs.corpus import leaks, left_out, sentences, truncated


def test_nothing_to_say_is_nothing() -> None:
    assert sentences({"read": 10, "kept": 10, "duplicate": 0}) == []
    assert sentences({}) == [], "a sweep of an earlier version"


def test_rows_that_are_not_used_are_counted_with_their_reasons() -> None:
    data = {"read": 1000, "kept": 500, "duplicate": 300, "empty": 200, "near_duplicate": 7, "deduplicate": 0.95}
    assert left_out(data) == (
        "of 1,000 rows read, left out: 300 equal to an earlier text, 200 empty, "
        "7 nearly equal to an earlier text (cosine above 0.95)"
    )


def test_cut_texts_and_leaks_are_sentences() -> None:
    assert truncated({"truncated": 1, "max_seq_length": 256}) == ("1 text was cut at the encoder's limit of 256 tokens")
    data = {"equal_validation": 2, "equal_test": 0, "near_test": 20, "near_test_of": 1000, "near_above": 0.95}
    assert leaks(data) == [
        "2 of the validation texts have the same embedding as a training text",
        "20 of 1,000 test texts have a training text at a cosine above 0.95; data.deduplicate: 0.95 leaves such texts "
        "out",
    ]
