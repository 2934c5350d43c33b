"""Embeddings of one's own become an entry that all that reads an entry reads."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from corpora import sentences

from saebench.cli import cli
from saebench.config import DataConfig
from saebench.errors import DataError, SpecError
from saebench.runs.paths import SweepPaths
from saebench.spec import SweepSpec, parse_spec
from saebench.stores import ActivationsStoreSBERT, cache, entry, open_store, own, rows, tidy
from saebench.sweep.embeddings import Embeddings
from saebench.terminal.views import QuietView

ROWS = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


def sweep_of(folder: Path, run: dict[str, Any], **data: Any) -> SweepSpec:
    """A spec beside the files."""
    if "embeddings" not in data:
        np.save(folder / "e.npy", data.pop("rows", ROWS))
    (folder / "t.txt").write_text("\n".join(data.pop("values", sentences(300))))
    values = {
        "name": "own",
        "data": {"embeddings": "e.npy", **data},
        "sae": [{"type": "topk", "k": 2, "dict_size": 8}],
        "train": {"samples": 1000, "batch_size": 16},
        "run": run,
    }
    return parse_spec(values, folder=folder)


def spec_of(folder: Path, **data: Any) -> DataConfig:
    """Its data."""
    return sweep_of(folder, {}, **data).data


def write_folder(path: Path, rows: list[Any]) -> None:
    path.mkdir()
    for number, part in enumerate(rows):
        np.save(path / f"{number}.npy", part)


def write_source(kind: str, folder: Path) -> dict[str, Any]:
    """Write ROWS in a layout that can be mapped; return the spec's keys for it."""
    narrow = ROWS.astype(np.float16)
    if kind == "folder":
        write_folder(folder / "many", [ROWS[:70], ROWS[70:71], ROWS[71:]])
        return {"embeddings": "many"}
    if kind == "safetensors":
        safetensors.numpy.save_file({"e": narrow}, folder / "e.safetensors", metadata={"model": "m"})
        return {"embeddings": "e.safetensors"}
    return {"rows": ROWS} if kind == "float32" else {"rows": narrow, "dtype": kind.removeprefix("float16 as ")}


def open_again(data: DataConfig, cache_dir: Path, key: str) -> ActivationsStoreSBERT:
    """The store as a trial opens it."""
    return open_store(data, batch_size=16, seed=3, device="cpu", cache_dir=cache_dir, cache_key=key)


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


LAYOUTS = ("float32", "float16 as float16", "float16 as float32", "folder", "safetensors")


@pytest.mark.parametrize("kind", LAYOUTS)
def test_mapped_rows_give_the_batches_of_copied_ones_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    texts = [*sentences(200), *sentences(50), " ", *sentences(49, seed=1)]
    data = spec_of(tmp_path, values=texts, texts="t.txt", holdout=0.3, **write_source(kind, tmp_path))
    mapped = cache.build(data, tmp_path / "a")
    copied = cache.build(data, tmp_path / "b", copy=True)
    assert mapped.cache_key == copied.cache_key
    assert mapped.manifest.sources
    assert not list(mapped.directory.glob("*-rows-*"))
    assert not copied.manifest.sources
    assert list(copied.directory.glob("*-rows-*"))
    assert {shard.rows for shard in mapped.shards} == {None}
    everything = np.arange(mapped.count)
    assert mapped.read(everything).tobytes() == copied.read(everything).tobytes()
    assert mapped.info == copied.info
    one, other = (open_again(data, tmp_path / name, mapped.cache_key) for name in "ab")
    for store in (one, other):
        store.set_aside(20, torch.arange(5))
    for _ in range(40):  # more than two epochs
        assert torch.equal(one.next_batch(), other.next_batch())
    assert torch.equal(one.sample(50), other.sample(50))
    for part in ("validation", "test"):
        assert torch.equal(*(torch.cat(list(getattr(store, part)(7))) for store in (one, other)))
    assert one.state_dict() == other.state_dict()


@pytest.mark.parametrize("kind", ["Fortran", "float64", "big-endian", "narrowed", "mixed"])
def test_rows_in_another_layout_are_copied(tmp_path: Path, cache_dir: Path, kind: str) -> None:
    changes: dict[str, Any] = {
        "Fortran": {"rows": np.asfortranarray(ROWS)},
        "float64": {"rows": ROWS.astype(np.float64)},
        "big-endian": {"rows": ROWS.astype(">f4")},
        "narrowed": {"rows": ROWS, "dtype": "float16"},
        "mixed": {"embeddings": "many"},
    }[kind]
    write_folder(tmp_path / "many", [ROWS[:100], ROWS[100:].astype(np.float16)])
    found = cache.build(spec_of(tmp_path, **changes), cache_dir)
    assert not found.manifest.sources
    assert np.abs(found.read(np.arange(300)) - ROWS).max() < 0.002


def change(path: Path, how: str) -> None:
    stat = path.stat()
    if how == "removed":
        path.unlink()
    elif how == "shorter":
        os.truncate(path, stat.st_size - 24)
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as copying with its times does


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("removed", "no such file: it was moved or removed since the entry was built"),
        ("shorter", "has changed: 7,304 bytes, 7,328 when the entry was built"),
        ("other content", "has changed: its content has another checksum"),
    ],
)
def test_a_file_that_changed_is_one_line_before_a_trial_and_while_it_runs(
    tmp_path: Path, cache_dir: Path, how: str, why: str
) -> None:
    data = spec_of(tmp_path, holdout=0.3)
    key, file = cache.build(data, cache_dir).cache_key, tmp_path / "e.npy"
    running = open_again(data, cache_dir, key)
    expected, before = running.next_batch(), file.read_bytes()
    os.utime(file)  # another time, the same content
    assert torch.equal(open_again(data, cache_dir, key).next_batch(), expected)
    change(file, how)
    line = rf"^data\.embeddings: {file}: {why}.*; its rows are not copied .* Put it back .* saebench cache build SPEC$"
    with pytest.raises(DataError, match=line):
        open_again(data, cache_dir, key)
    with pytest.raises(DataError, match=line):
        list(running.test())
    ((_, problems),) = tidy.verify(cache_dir)
    assert len(problems) == 1
    assert problems[0].startswith(f"{file}: ")
    file.write_bytes(before)
    assert torch.equal(open_again(data, cache_dir, key).next_batch(), expected)
    assert list(tidy.verify(cache_dir)) == [(cache_dir / "embeddings" / key, [])]


def test_a_file_that_moved_is_found_by_the_next_build(tmp_path: Path, cache_dir: Path) -> None:
    before = cache.build(spec_of(tmp_path), cache_dir)
    (tmp_path / "e.npy").rename(tmp_path / "f.npy")
    data = spec_of(tmp_path, embeddings="f.npy")
    after = cache.build(data, cache_dir)
    assert (after.cache_key, after.manifest.sources[0].path) == (before.cache_key, str(tmp_path / "f.npy"))
    assert (after.read(np.arange(300)) == ROWS).all()
    assert cache.build(data, cache_dir).manifest == after.manifest


def test_a_cluster_gets_a_copy_also_of_an_entry_that_was_mapped(tmp_path: Path, cache_dir: Path) -> None:
    spec = sweep_of(tmp_path, {"executor": "ray", "address": "here:1"}, holdout=0.3)
    mapped = cache.build(spec.data, cache_dir)
    assert mapped.manifest.sources

    class Cluster:
        def encoders(self) -> list[str]:
            return ["cpu"]

    paths = SweepPaths(tmp_path / "runs" / "own")
    paths.root.mkdir(parents=True)
    locked = Embeddings(spec, paths, cache_dir, QuietView(), False).prepare(Cluster(), None)  # type: ignore[arg-type]
    assert locked["cache_key"] == mapped.cache_key
    (tmp_path / "e.npy").rename(tmp_path / "gone.npy")
    copied = cache.find(spec.data, cache_dir, mapped.cache_key)
    assert copied is not None
    assert not copied.manifest.sources
    assert (copied.read(np.arange(300)) == ROWS).all()


def test_the_cache_commands_know_mapped_entries_and_leave_the_file_alone(tmp_path: Path, cache_dir: Path) -> None:
    found = replace(cache.build(spec_of(tmp_path), cache_dir), hold=None)
    key = found.cache_key
    del found

    def run(*arguments: str) -> str:
        return CliRunner().invoke(cli, ["cache", *arguments, "--cache-dir", str(cache_dir)]).output

    assert "complete, mapped" in run("ls")
    assert run("verify") == f"{key}: sound\n"
    assert key not in run("gc"), "complete entries stay"
    assert f"{key}: " in run("gc", key[:8])
    assert (np.load(tmp_path / "e.npy") == ROWS).all()
    assert not list(tidy.entries(cache_dir))
