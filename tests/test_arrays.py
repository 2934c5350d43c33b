"""Embeddings of one's own, in every layout they may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save_file

from saebench.arrays import column, open_embeddings, width_of
from saebench.errors import DataError

ROWS = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)


def npy(folder: Path) -> Path:
    np.save(folder / "e.npy", ROWS)
    return folder / "e.npy"


def fortran(folder: Path) -> Path:
    np.save(folder / "e.npy", np.asfortranarray(ROWS))
    return folder / "e.npy"


def double(folder: Path) -> Path:
    np.save(folder / "e.npy", ROWS.astype(np.float64))
    return folder / "e.npy"


def many(folder: Path) -> Path:
    for number, part in enumerate((ROWS[:7], ROWS[7:8], ROWS[8:])):
        np.save(folder / f"{number}.npy", part)
    return folder


def tensors(folder: Path) -> Path:
    save_file({"rows": ROWS}, folder / "e.safetensors")
    return folder / "e.safetensors"


def parquet(folder: Path) -> Path:
    table = pyarrow.table({"id": list(range(50)), "vector": list(ROWS), "text": [f"t {i}" for i in range(50)]})
    pyarrow.parquet.write_table(table, folder / "e.parquet", row_group_size=20)
    return folder / "e.parquet"


LAYOUTS = [npy, fortran, double, many, tensors, parquet]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_the_rows_of_every_layout_come_in_blocks(tmp_path: Path, layout: Callable[[Path], Path], size: int) -> None:
    found = open_embeddings(layout(tmp_path))
    assert (found.count, found.d_in) == (50, 6)
    blocks = list(found.blocks(size))
    assert [len(block) for block in blocks] == [size] * (50 // size) + [50 % size] * (50 % size > 0)
    assert all(block.dtype == np.float32 and block.flags.c_contiguous for block in blocks)
    assert (np.concatenate(blocks) == ROWS).all()


def test_half_precision_stays(tmp_path: Path) -> None:
    np.save(tmp_path / "e.npy", ROWS.astype(np.float16))
    (block,) = open_embeddings(tmp_path / "e.npy").blocks(64)
    assert block.dtype == np.float16


def bad_shape(folder: Path) -> Path:
    np.save(folder / "e.npy", ROWS[0])
    return folder / "e.npy"


def integers(folder: Path) -> Path:
    np.save(folder / "e.npy", np.zeros((3, 2), int))
    return folder / "e.npy"


def objects(folder: Path) -> Path:
    np.save(folder / "e.npy", np.array([[1], ["a"]], object), allow_pickle=True)
    return folder / "e.npy"


def half_a_file(folder: Path) -> Path:
    path = npy(folder)
    path.write_bytes(path.read_bytes()[:40])
    return path


def two_widths(folder: Path) -> Path:
    np.save(folder / "a.npy", ROWS)
    np.save(folder / "b.npy", ROWS[:, :4])
    return folder


def two_tensors(folder: Path) -> Path:
    save_file({"a": ROWS, "b": ROWS}, folder / "e.safetensors")
    return folder / "e.safetensors"


def no_lists(folder: Path) -> Path:
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a"]}), folder / "e.parquet")
    return folder / "e.parquet"


BAD: list[tuple[Callable[[Path], Path], str]] = [
    (bad_shape, r"shape \(6,\), must be \(rows, values of a row\)"),
    (integers, "values of type int64, must be floating-point numbers"),
    (objects, "cannot be read: an array of objects"),
    (half_a_file, "cannot be read: "),
    (two_widths, "the files have rows of 4 and 6 values"),
    (two_tensors, "2 tensors, must be one"),
    (no_lists, "0 columns hold lists of numbers, must be one"),
    (lambda folder: folder / "none.npy", "no such file or folder"),
    (lambda folder: folder, "no .npy file in this folder"),
]


@pytest.mark.parametrize(("layout", "why"), BAD)
def test_what_are_no_embeddings_is_one_line(tmp_path: Path, layout: Callable[[Path], Path], why: str) -> None:
    path = layout(tmp_path)
    with pytest.raises(DataError, match=rf"^data\.embeddings: {tmp_path}.*: {why}") as raised:
        open_embeddings(path)
    assert "\n" not in str(raised.value)
    assert width_of(str(path)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_one_line(tmp_path: Path, bad: float) -> None:
    rows = ROWS.copy()
    rows[3, 2] = bad
    np.save(tmp_path / "e.npy", rows)
    with pytest.raises(DataError, match="NaN, infinity, or a value beyond float32"):
        list(open_embeddings(tmp_path / "e.npy").blocks(10))


def test_values_per_row_come_from_files_or_columns(tmp_path: Path) -> None:
    found = open_embeddings(parquet(tmp_path))
    expected = [f"t {i}" for i in range(50)]
    (tmp_path / "t.txt").write_text("\n".join(expected))
    np.save(tmp_path / "t.npy", np.array(expected))
    (tmp_path / "t.json").write_text(str(expected).replace("'", '"'))
    for name in ("text", str(tmp_path / "t.txt"), str(tmp_path / "t.npy"), str(tmp_path / "t.json")):
        assert column(name, found, "data.texts") == expected
    (tmp_path / "short.txt").write_text("one\ntwo")
    bad: list[tuple[Any, str]] = [
        (tmp_path / "short.txt", "2 values for 50 embeddings"),
        (tmp_path / "none.txt", "cannot be read"),
        ("nothing", "cannot be read"),
        (tmp_path, "cannot be read"),
    ]
    for name, why in bad:
        with pytest.raises(DataError, match=rf"^data\.texts: .*: {why}"):
            column(str(name), found, "data.texts")
