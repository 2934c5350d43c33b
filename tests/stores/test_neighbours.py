"""Near and equal rows are those that a comparison of all pairs finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import sentences

from saebench.config import DataConfig
from saebench.stores import cache, neighbours
from saebench.stores.neighbours import count_equal, count_near, without_near_duplicates

Corpus = Callable[..., DataConfig]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> neighbours.Floats:
    """400 rows around 60 centres, in blocks of 64; some are equal, one is zero."""
    monkeypatch.setattr(neighbours, "BLOCK", 64)
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(60, 12))
    found = centres[generator.integers(0, 60, 400)] + 0.2 * generator.normal(size=(400, 12))
    found[300:310] = found[:10]
    found[399] = 0
    return (found * generator.uniform(0.5, 2, (400, 1))).astype(np.float32)


def cosines(rows: neighbours.Floats) -> np.ndarray:  # type: ignore[type-arg]
    wide = rows.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T  # type: ignore[no-any-return]


@pytest.mark.parametrize("above", [0.9, 0.97])
def test_a_row_goes_if_it_is_near_an_earlier_one_that_stays(rows: neighbours.Floats, above: float) -> None:
    """Going through the rows one by one, which is what the blocks must come to."""
    near = cosines(rows) > above
    stays: list[int] = []
    for i in range(len(rows)):
        if not near[i, stays].any():
            stays.append(i)
    keep = without_near_duplicates(lambda index: rows[index], len(rows), above)
    assert np.flatnonzero(keep).tolist() == stays
    assert 50 < len(stays) < 380
    assert keep[399], "a row of zeros is near nothing"


def test_near_rows_of_another_part_are_counted(rows: neighbours.Floats) -> None:
    ours, theirs = np.arange(0, 400, 3), np.arange(1, 400, 3)
    expected = int((cosines(rows)[np.ix_(ours, theirs)] > 0.95).any(axis=1).sum())
    assert count_near(lambda index: rows[index], ours, theirs, 0.95) == expected
    assert 10 < expected < 130
    assert count_near(lambda index: rows[index], ours, theirs[:0], 0.95) == 0


def test_equal_rows_are_counted_and_near_ones_are_not(rows: neighbours.Floats) -> None:
    rows[300:310] = rows[:10]
    rows[310] = np.nextafter(rows[11], 2)
    assert count_equal(lambda index: rows[index], [np.arange(290, 320), np.arange(320, 330)], np.arange(100)) == [10, 0]


def test_a_large_corpus_is_looked_at_in_part() -> None:
    assert neighbours.rows_looked_at(6_600, 93_000, 384) == 6_600
    assert neighbours.rows_looked_at(66_000, 930_000, 384) == 1_400
    assert neighbours.rows_looked_at(0, 10, 384) == 0


@pytest.mark.usefixtures("inline")
def test_the_entry_counts_leaks_and_leaves_near_duplicates_out(
    corpus: Corpus, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model sees the first word: texts that begin alike have the same embedding, as with an uncased encoder."""
    from saebench.stores import sentence_encoder

    model = sentence_encoder._load(None, None)  # type: ignore[arg-type]
    plain = model.row
    monkeypatch.setattr(model, "row", lambda text: plain(text.split()[0].lower()))
    texts = sentences(300)
    data = corpus(texts, holdout={"validation": 0.2, "test": 0.2})
    entry = cache.build(data, cache_dir)
    train = {texts[i].split()[0] for i in entry.train_index}
    twins = {part: sum(texts[i].split()[0] in train for i in entry.index_of(part)) for part in ("validation", "test")}
    assert twins["test"] == entry.info["equal_test"] == entry.info["near_test"] > 40
    assert twins["validation"] == entry.info["equal_validation"] > 40
    found = cache.find(data, cache_dir)
    assert found is not None
    assert found.info == entry.info, "kept beside the entry"

    apart = cache.build(data.model_copy(update={"deduplicate": 0.999}), cache_dir)
    assert apart.directory == entry.directory
    assert [text.text for text in apart.texts()] == texts, "text i is row i"
    kept = np.concatenate([apart.index_of(part) for part in ("train", "validation", "test")])
    firsts = [texts[i].split()[0] for i in kept]
    assert sorted(firsts) == sorted({text.split()[0] for text in texts})
    assert apart.num_train + apart.num_validation + apart.num_test == len(firsts) == 16
    assert apart.info["near_duplicate"] == 300 - 16
    assert (apart.info["equal_test"], apart.info["near_test"]) == (0, 0)
    again = cache.find(data.model_copy(update={"deduplicate": 0.999}), cache_dir)
    assert again is not None
    assert again.train_index.tolist() == apart.train_index.tolist()
    assert cache.find(data.model_copy(update={"deduplicate": 0.5}), cache_dir) is None, "not compared at that yet"
