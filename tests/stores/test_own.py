"""Embeddings of one's own become an entry that all that reads an entry reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import sentences

from saebench.config import DataConfig
from saebench.errors import DataError, SpecError
from saebench.spec import parse_spec
from saebench.stores import cache, entry, open_store, own, rows

ROWS = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def spec_of(folder: Path, **data: Any) -> DataConfig:
    """The data of a spec beside the files."""
    np.save(folder / "e.npy", data.pop("rows", ROWS))
    (folder / "t.txt").write_text("\n".join(data.pop("values", sentences(300))))
    values = {
        "name": "own",
        "data": {"embeddings": "e.npy", **data},
        "sae": [{"type": "topk", "k": 2, "dict_size": 8}],
        "train": {"samples": 1000, "batch_size": 16},
    }
    return parse_spec(values, folder=folder).data


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (entry, own, rows):
        monkeypatch.setattr(module, "ROWS_PER_SHARD", 64)


@pytest.mark.parametrize("layout", [np.asarray, np.asfortranarray])
def test_rows_texts_and_labels_are_those_of_the_files(tmp_path: Path, cache_dir: Path, layout: Any) -> None:
    texts = [*sentences(200), *sentences(50), " ", *sentences(49, seed=1)]
    np.save(tmp_path / "l.npy", np.arange(300) % 3)
    data = spec_of(tmp_path, rows=layout(ROWS), values=texts, texts="t.txt", labels="l.npy", holdout=0.3)
    assert (data.num_examples, data.dataset.data_files, data.model) == (
        300,
        str(tmp_path / "e.npy"),
        str(tmp_path / "e.npy"),
    )
    found = cache.build(data, cache_dir)
    kept = [*range(200), *range(251, 300)]
    assert found.row_numbers(np.arange(found.count)) == kept, "the first of equal texts"
    assert (found.read(np.arange(found.count)) == ROWS[kept]).all()
    assert [text.text for text in found.texts()] == [texts[i] for i in kept]
    assert found.labels(found.test_index) == [kept[i] % 3 for i in found.test_index]
    assert (found.info["duplicate"], found.info["empty"]) == (50, 1)
    store = open_store(data, batch_size=16, seed=0, device="cpu", cache_dir=cache_dir)
    assert torch.equal(torch.cat(list(store.test())), torch.from_numpy(ROWS[kept][found.test_index]))
    served = torch.cat([store.next_batch() for _ in range(20)])[: store.num_train]
    assert {row.numpy().tobytes() for row in served} == {row.tobytes() for row in ROWS[kept][found.train_index]}
    with pytest.raises(DataError, match="no model was given"):
        store.get_activations("a text")


def test_without_texts_the_id_or_the_number_decides_the_part(tmp_path: Path, cache_dir: Path) -> None:
    numbered = cache.build(spec_of(tmp_path), cache_dir)
    assert [text.text for text in numbered.texts()] == list(map(str, range(300)))
    named = cache.build(spec_of(tmp_path, ids="t.txt"), cache_dir)
    assert [text.text for text in named.texts()] == sentences(300)
    assert named.test_index.tolist() != numbered.test_index.tolist()
    half = cache.build(spec_of(tmp_path, dtype="float16", num_examples=100), cache_dir)
    assert (half.count, half.rows()[0].dtype) == (100, np.float16)


def test_other_content_is_another_entry_and_a_moved_file_is_not(tmp_path: Path, cache_dir: Path) -> None:
    keys = set()
    for name, changes in (("a", {}), ("b", {}), ("c", {"rows": ROWS[::-1]}), ("d", {"texts": "t.txt"})):
        (tmp_path / name).mkdir()
        keys.add(cache.entry_folder(spec_of(tmp_path / name, **changes), cache_dir).name)
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"rows": np.vstack([ROWS[:299], np.zeros((1, 6), np.float32)])}, r"e\.npy: row 299 holds only zeros"),
        ({"rows": np.full((300, 6), np.nan, np.float32)}, "NaN, infinity"),
        ({"rows": ROWS[:250], "texts": "t.txt"}, r"^data\.texts: .*t\.txt: 300 values for 250 embeddings"),
        ({"rows": ROWS * 1e5, "dtype": "float16"}, "too large for data.dtype: float16"),
    ],
)
def test_rows_that_cannot_be_are_one_line_and_leave_nothing(
    tmp_path: Path, cache_dir: Path, changes: dict[str, Any], why: str
) -> None:
    with np.errstate(over="ignore"), pytest.raises(DataError, match=why):
        cache.build(spec_of(tmp_path, num_examples=200, holdout=0.2, **changes), cache_dir)
    assert not [path for path in (cache_dir / "embeddings").iterdir() if path.is_dir()]


def test_a_spec_says_what_is_wrong_with_them(tmp_path: Path) -> None:
    for changes, rule in (
        ({"embeddings": "none.npy"}, r"data\.embeddings: .*no such file or folder"),
        ({"cache": False}, r"data\.cache: .*must be on"),
        ({"embeddings": None, "ids": "t.txt"}, r"data\.ids: .*belongs to embeddings of your own"),
        ({"embeddings": None}, r"data\.model: is missing"),
    ):
        with pytest.raises(SpecError, match=rule):
            spec_of(tmp_path, **changes)
