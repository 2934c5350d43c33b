"""DiskActivationStore: what is written can be read, by anybody, also after accidents."""

from __future__ import annotations

import errno
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from saebench.errors import DataError, LockedError
from saebench.stores import DiskActivationStore, StoreFullError, disk_rows


def rows(start: int, stop: int, width: int = 3) -> torch.Tensor:
    """Row i holds i, i + 0.25, i + 0.5, ..."""
    return torch.arange(start, stop)[:, None] + torch.arange(width) / 4


def test_rows_come_back_in_order_across_shards_and_memory(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=40) as store:
        for start in range(0, 160, 16):
            store.extend(rows(start, start + 16))
        assert len(store) == 160
        assert torch.equal(store[:], rows(0, 160)[:, None])
        assert torch.equal(store[41], rows(41, 42))
        assert torch.equal(store[-1], rows(159, 160))
        assert torch.equal(store[[3, 155, 3, 90]].squeeze(1), rows(0, 160)[[3, 155, 3, 90]])
        assert torch.equal(store[38:82:2, 0, 1], rows(0, 160)[38:82:2, 1])
        assert torch.equal(store[7, 0], rows(7, 8)[0])
    assert len(list(tmp_path.glob("*.safetensors"))) == 4


def test_a_reopened_store_goes_on(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=10) as store:
        store.extend(rows(0, 25))
    with DiskActivationStore(3, tmp_path, max_cache_size=10) as store:
        assert len(store) == 25
        store.extend(rows(25, 33))
        assert torch.equal(store[:], rows(0, 33)[:, None])
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 33)[:, None])
    assert DiskActivationStore(3, tmp_path).verify() == []


def test_extend_returns_before_the_rows_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    plain = DiskActivationStore._store_rows

    def waits(self: DiskActivationStore, batch: torch.Tensor, component: int) -> None:
        assert gate.wait(60)
        plain(self, batch, component)

    monkeypatch.setattr(DiskActivationStore, "_store_rows", waits)
    with DiskActivationStore(3, tmp_path, max_cache_size=2) as store:
        batch = rows(0, 4)
        future = store.extend(batch)
        assert isinstance(future, Future)
        assert not future.done()
        batch.zero_()  # what was handed over is the store's own
        assert store.current_activations_stored_per_component == [4]
        gate.set()
        assert future.result(60) is None
        assert torch.equal(store[:], rows(0, 4)[:, None])


def test_components_fill_independently_and_longer_ones_lose_nothing(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=4, n_components=2) as store:
        store.extend(rows(0, 11), 0)
        store.append(rows(100, 101)[0], 1)
        store.extend(rows(101, 106), 1)
        assert (len(store), store.current_activations_stored_per_component) == (6, [11, 6])
        assert torch.equal(store[5], torch.cat([rows(5, 6), rows(105, 106)]))
    with DiskActivationStore(3, tmp_path, max_cache_size=4, n_components=2) as store:
        assert store.current_activations_stored_per_component == [11, 6]
        store.extend(rows(106, 111), 1)
        assert torch.equal(store[:], torch.stack([rows(0, 11), rows(100, 111)], dim=1))
    assert len(list(tmp_path.glob("ahead-*"))) == 0


def test_rows_that_found_their_partners_are_not_there_twice_after_a_kill(tmp_path: Path) -> None:
    """A shard holds them, and the file in which they waited is still there: the writer is gone before it is closed."""
    with DiskActivationStore(3, tmp_path, max_cache_size=4, n_components=2) as store:
        store.extend(rows(0, 11), 0)
        store.extend(rows(100, 106), 1)
    killed = DiskActivationStore(3, tmp_path, max_cache_size=4, n_components=2)
    killed.extend(rows(106, 110), 1).result(60)
    reader = DiskActivationStore(3, tmp_path, n_components=2)
    assert reader.current_activations_stored_per_component == [11, 10]
    killed._release()
    with DiskActivationStore(3, tmp_path, max_cache_size=4, n_components=2) as store:
        store.extend(rows(110, 111), 1)
        assert torch.equal(store[:], torch.stack([rows(0, 11), rows(100, 111)], dim=1))


def test_full_stores_nothing(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_items=6) as store:
        store.extend(rows(0, 4))
        with pytest.raises(StoreFullError):
            store.extend(rows(4, 8))
        store.extend(rows(4, 6))
        assert torch.equal(store[:], rows(0, 6)[:, None])


@pytest.mark.parametrize("index", [5, -6, [0, 9]])
def test_beyond_what_is_stored_is_an_index_error(tmp_path: Path, index: int | list[int]) -> None:
    with DiskActivationStore(3, tmp_path) as store:
        store.extend(rows(0, 5))
        with pytest.raises(IndexError):
            store[index]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_types_are_kept(tmp_path: Path, dtype: torch.dtype) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=4, dtype=dtype) as store:
        store.extend(rows(0, 10))
    read = DiskActivationStore(3, tmp_path, dtype=dtype)[:]
    assert read.dtype == dtype
    assert torch.equal(read, rows(0, 10)[:, None].to(dtype))


def test_empty_deletes_and_empty_dir_does_so_at_once(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=4) as store:
        store.extend(rows(0, 10))
        store.empty()
        assert (len(store), list(tmp_path.glob("*.safetensors"))) == (0, [])
        store.extend(rows(5, 8))
        assert torch.equal(store[:], rows(5, 8)[:, None])
    with DiskActivationStore(3, tmp_path, empty_dir=True) as store:
        assert len(store) == 0


def test_one_process_writes_any_number_reads(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=8) as store:
        store.extend(rows(0, 40))
        store.flush()
        reader = DiskActivationStore(3, tmp_path)
        assert torch.equal(reader[:], rows(0, 40)[:, None])
        with pytest.raises(LockedError, match="another process writes"):
            reader.extend(rows(0, 1))
        loader = DataLoader(reader, batch_size=16, num_workers=2, multiprocessing_context="fork")
        assert torch.equal(torch.cat(list(loader)), rows(0, 40)[:, None])


def test_shuffling_permutes_examples_by_the_seed_and_moves_nothing_on_disk(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=16) as store:
        store.extend(rows(0, 50))
    orders = []
    for seed in (0, 0, 1):
        store = DiskActivationStore(3, tmp_path, seed=seed)
        store.shuffle()
        orders.append(store[:, 0, 0].tolist())
        assert torch.equal(torch.stack([store[i] for i in range(50)]), store[:])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(50))
    assert DiskActivationStore(3, tmp_path)[:, 0, 0].tolist() == list(range(50))


def test_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path) as store:
        store.extend(rows(0, 5))
    with pytest.raises(DataError, match="n_neurons: the store was written with 3, not 4"):
        DiskActivationStore(4, tmp_path)
    with pytest.raises(DataError, match="dtype: the store was written with 'float32', not 'float16'"):
        DiskActivationStore(3, tmp_path, dtype=torch.float16)


def test_damage_is_noticed(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=5) as store:
        store.extend(rows(0, 10))
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    content = bytearray(victim.read_bytes())
    content[-3] ^= 1
    victim.write_bytes(content)
    assert DiskActivationStore(3, tmp_path).verify() == [victim.name]
    victim.write_bytes(content[:-1])
    with pytest.raises(DataError, match=r"missing or truncated"):
        DiskActivationStore(3, tmp_path)


def test_a_failure_in_the_background_is_raised_where_the_rows_are_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskActivationStore(3, tmp_path, max_cache_size=4)
    with monkeypatch.context() as patched:
        patched.setattr(
            "saebench.stores.disk_rows.write_tensors", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
        )
        store.extend(rows(0, 6))
        with pytest.raises(OSError, match="disk full"):
            store[0]
    store.extend(rows(6, 8))  # the disk has room again: nothing is lost
    assert torch.equal(store[:], rows(0, 8)[:, None])
    store.close()
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 8)[:, None])


def test_a_store_that_begins_to_write_takes_up_what_another_wrote_meanwhile(tmp_path: Path) -> None:
    late = DiskActivationStore(3, tmp_path, max_cache_size=4)
    with DiskActivationStore(3, tmp_path, max_cache_size=4) as other:
        other.extend(rows(0, 10))
    with late:
        late.extend(rows(10, 15))
        assert torch.equal(late[:], rows(0, 15)[:, None])
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 15)[:, None])


def test_what_a_killed_writer_left_goes_and_files_of_others_stay(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=4) as store:
        store.extend(rows(0, 8))
    strays = ["000000000008-000000000012-0123456789ab.safetensors", ".ahead.safetensors.0123abcd.tmp"]
    strays.append(".manifest.json.0123abcd.tmp")
    for name in [*strays, "model.safetensors"]:
        (tmp_path / name).write_bytes(b"x")
    with DiskActivationStore(3, tmp_path, max_cache_size=4) as store:
        store.extend(rows(8, 9))
        assert torch.equal(store[:], rows(0, 9)[:, None])
        assert not [name for name in strays if (tmp_path / name).exists()]
        store.empty()
    assert sorted(path.name for path in tmp_path.glob("*")) == ["model.safetensors", "writer.lock"]


def test_a_directory_that_is_to_be_emptied_may_hold_another_shape(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path) as store:
        store.extend(rows(0, 5))
    with DiskActivationStore(5, tmp_path, empty_dir=True) as store:
        store.extend(rows(0, 2, 5))
    assert len(DiskActivationStore(5, tmp_path)) == 2


def test_a_full_disk_keeps_no_half_of_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = DiskActivationStore(3, tmp_path, max_cache_size=4)
    with monkeypatch.context() as patched:
        patched.setattr("saebench.runs.durable.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.extend(rows(0, 4)).result(60)
        assert [path.name for path in tmp_path.iterdir()] == ["writer.lock"]
    store.extend(rows(4, 5))
    store.close()
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 5)[:, None])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_forks_while_rows_are_written_has_children_that_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that inherited a lock in the background's hands would wait for ever."""
    forks = threading.Event()
    write, prepare = disk_rows.write_tensors, DiskActivationStore.before_fork

    def writes_during_the_fork(*args: Any) -> Any:
        assert forks.wait(60)
        time.sleep(0.2)  # a fork that does not wait for this write happens in the middle of it
        return write(*args)

    def before_fork(store: DiskActivationStore) -> None:
        forks.set()
        prepare(store)

    monkeypatch.setattr(disk_rows, "write_tensors", writes_during_the_fork)
    monkeypatch.setattr(DiskActivationStore, "before_fork", before_fork)
    with DiskActivationStore(3, tmp_path, max_cache_size=8) as store:
        store.extend(rows(0, 6)).result(60)
        future = store.extend(rows(6, 30))
        loader = DataLoader(store, batch_size=7, num_workers=2, multiprocessing_context="fork", timeout=60)
        assert not future.done()
        assert torch.equal(torch.cat(list(loader)), rows(0, 30)[:, None])
        store.extend(rows(30, 33)).result(60)
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 33)[:, None])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_does_not_write_beside_its_parent(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child() -> None:
        try:
            store.extend(rows(5, 6))
        except LockedError as error:
            answers.put(str(error))

    with DiskActivationStore(3, tmp_path) as store:
        store.extend(rows(0, 5)).result(60)
        process = context.Process(target=child)
        process.start()
        process.join(60)
        assert process.exitcode == 0
        assert "another process writes to this store" in answers.get()
        store.extend(rows(5, 7))
    assert torch.equal(DiskActivationStore(3, tmp_path)[:], rows(0, 7)[:, None])


def test_a_copy_reads_what_was_in_memory_in_the_same_order_and_is_as_full(tmp_path: Path) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=8, max_items=21, seed=5) as store:
        store.extend(rows(0, 20))
        store.shuffle()
        store.extend(rows(20, 21))
        copy = pickle.loads(pickle.dumps(store))
        assert torch.equal(copy[:], store[:])
        store.shuffle()
        copy.shuffle()
        assert torch.equal(copy[:], store[:])
    with copy, pytest.raises(StoreFullError):
        copy.extend(rows(21, 22))


@pytest.mark.parametrize("place", range(3, 250, 31))
def test_a_damaged_manifest_is_one_line(tmp_path: Path, place: int) -> None:
    with DiskActivationStore(3, tmp_path, max_cache_size=5) as store:
        store.extend(rows(0, 10))
    path = tmp_path / "manifest.json"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json: damaged: [^\n]+$"):
        DiskActivationStore(3, tmp_path)
    with DiskActivationStore(3, tmp_path, empty_dir=True) as store:
        assert len(store) == 0


def test_single_rows_are_taken_in_without_touching_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each append once copied all that waited: 9,000 rows of 384 took 47 seconds."""
    copied: list[int] = []
    plain = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda self, *size: copied.append(size[0]) or plain(self, *size),  # type: ignore[func-returns-value]
    )
    with DiskActivationStore(3, tmp_path) as store:
        for number in range(1_000):
            store.append(rows(number, number + 1)[0])
        assert torch.equal(store[999, 0], rows(999, 1_000)[0])
        assert torch.equal(store[:], rows(0, 1_000)[:, None])
    assert sum(copied) < 4 * 1_000
