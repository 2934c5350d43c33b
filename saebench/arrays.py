"""Precomputed embeddings: rows in .npy files (one, or a folder of them), a .safetensors tensor or a list column of a
Parquet file, optionally with texts, ids and labels. Read block by block; no torch.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from saebench.errors import DataError

Rows = npt.NDArray[Any]
KINDS = ".npy, .safetensors, .parquet, or a folder of .npy files"


@dataclass(frozen=True)
class Embeddings:
    """The path of the rows, and their shape."""

    path: Path
    count: int
    d_in: int

    def blocks(self, size: int) -> Iterator[Rows]:
        """Yield (up to size, d_in) float32 or float16 rows in order, each block but the last with `size` rows."""
        held: list[Rows] = []
        waiting = 0
        for part in _parts(self.path, size):
            held.append(_floats(part, self.path))
            waiting += len(part)
            while waiting >= size:
                whole = np.concatenate(held)
                yield whole[:size]
                held, waiting = [whole[size:]], waiting - size
        if waiting:
            yield np.concatenate(held)


def open_embeddings(path: str | Path) -> Embeddings:
    """Read the shape of the rows. Raises DataError, in one line, for files without embeddings."""
    path = Path(path)
    try:
        shapes = [_shape(file) for file in _files(path)]
    except DataError:
        raise
    except (OSError, ValueError, EOFError) as error:
        why = (
            "an array of objects"
            if re.search("allow_pickle|Python objects", str(error))
            else str(error).splitlines()[0][:200]
        )
        raise DataError(f"data.embeddings: {path}: cannot be read: {why}") from error
    except Exception as error:  # safetensors and pyarrow have classes of their own
        raise DataError(f"data.embeddings: {path}: cannot be read: {str(error).splitlines()[0][:200]}") from error
    widths = sorted({width for _, width in shapes})
    if len(widths) != 1:
        raise DataError(f"data.embeddings: {path}: the files have rows of {' and '.join(map(str, widths))} values")
    return Embeddings(path, sum(rows for rows, _ in shapes), widths[0])


@dataclass(frozen=True)
class Layout:
    """Where the rows of a file are: `count` rows of `dtype`, one after the other, from byte `offset`."""

    dtype: str
    offset: int
    count: int


def layout_of(file: Path) -> Layout | None:
    """Return where the rows are; None if they cannot be mapped: Fortran order, Parquet."""
    if file.suffix == ".npy":
        array = np.load(file, mmap_mode="r")
        rows_first = isinstance(array, np.memmap) and array.flags.c_contiguous
        return Layout(array.dtype.str, int(array.offset), len(array)) if rows_first else None
    if file.suffix == ".safetensors":
        tensor = _tensor(file)
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            (entry,) = (value for name, value in json.loads(opened.read(length)).items() if name != "__metadata__")
        offset = 8 + length + int(entry["data_offsets"][0])
        return Layout(f"<f{int(tensor.get_dtype()[1:]) // 8}", offset, int(tensor.get_shape()[0]))
    return None


def width_of(path: str) -> int | None:
    """Return the width of the rows; None if they cannot be read."""
    try:
        return open_embeddings(path).d_in
    except DataError:
        return None


def column(name: str, embeddings: Embeddings, key: str) -> list[Any]:
    """Return one value per row: lines of a .txt file, items of a .npy file or of a list in a .json file, or a column of
    the Parquet file that holds the embeddings. Raises DataError, which names `key`, for another number of values."""
    try:
        values = _column(name, embeddings)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{key}: {name}: cannot be read: {str(error).splitlines()[0][:200]}") from error
    if not isinstance(values, list) or len(values) != embeddings.count:
        count = f"{len(values):,}" if isinstance(values, list) else "no list of"
        raise DataError(f"{key}: {name}: {count} values for {embeddings.count:,} embeddings")
    return values


def files_of(path: str | Path) -> list[Path]:
    """Return the files that hold the rows, in order."""
    return _files(Path(path))


def _column(name: str, embeddings: Embeddings) -> Any:
    path = Path(name)
    if not path.exists() and embeddings.path.suffix == ".parquet":
        from pyarrow.parquet import read_schema, read_table

        wanted, there = os.path.basename(name), read_schema(embeddings.path).names
        if wanted not in there:
            raise ValueError(f"no such file, and no such column of {embeddings.path.name} ({', '.join(there)})")
        return read_table(embeddings.path, columns=[wanted]).column(0).to_pylist()
    if path.suffix == ".npy":
        return np.load(path).tolist()
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if path.suffix == ".txt":
        return path.read_text("utf-8").splitlines()
    raise ValueError("must be a .txt, .npy or .json file, or a column of the Parquet file with the embeddings")


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.npy"))
        if not found:
            raise DataError(f"data.embeddings: {path}: no .npy file in this folder")
        return found
    if not path.is_file():
        raise DataError(f"data.embeddings: {path}: no such file or folder")
    if path.suffix not in (".npy", ".safetensors", ".parquet"):
        raise DataError(f"data.embeddings: {path}: must be {KINDS}")
    return [path]


def _shape(file: Path) -> tuple[int, int]:
    if file.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(file) as opened:
            name = _list_column(opened, file)
            first = next(opened.iter_batches(1, columns=[name]), None)
            width = len(first.column(0)[0]) if first is not None and first.column(0)[0].is_valid else 0
            shape: tuple[int, ...] = (opened.metadata.num_rows, width)
    elif file.suffix == ".safetensors":
        shape = tuple(_tensor(file).get_shape())
    else:
        array = np.load(file, mmap_mode="r")
        if array.dtype.kind != "f":
            raise DataError(f"data.embeddings: {file}: values of type {array.dtype}, must be floating-point numbers")
        shape = array.shape
    if len(shape) != 2 or 0 in shape:
        raise DataError(f"data.embeddings: {file}: shape {shape}, must be (rows, values of a row)")
    return shape[0], shape[1]


def _parts(path: Path, size: int) -> Iterator[Rows]:
    for file in _files(path):
        if file.suffix == ".parquet":
            yield from _parquet_parts(file, size)
            continue
        source: Any = _tensor(file) if file.suffix == ".safetensors" else np.load(file, mmap_mode="r")
        count = _shape(file)[0]
        for start in range(0, count, size):
            yield np.asarray(source[start : min(start + size, count)])


def _parquet_parts(file: Path, size: int) -> Iterator[Rows]:
    from pyarrow.parquet import ParquetFile

    width = _shape(file)[1]
    with ParquetFile(file) as opened:
        for batch in opened.iter_batches(size, columns=[_list_column(opened, file)]):
            rows = batch.column(0)
            flat = rows.flatten().to_numpy(zero_copy_only=False)
            if rows.null_count or len(flat) != len(rows) * width:
                raise DataError(f"data.embeddings: {file}: rows of different lengths")
            yield flat.reshape(len(rows), width)


def _list_column(opened: Any, file: Path) -> str:
    """Return the one column of lists of numbers."""
    import pyarrow

    def is_list(kind: Any) -> bool:
        lists = pyarrow.types.is_list, pyarrow.types.is_large_list, pyarrow.types.is_fixed_size_list
        return any(test(kind) for test in lists) and pyarrow.types.is_floating(kind.value_type)

    found = [field.name for field in opened.schema_arrow if is_list(field.type)]
    if len(found) != 1:
        raise DataError(f"data.embeddings: {file}: {len(found)} columns hold lists of numbers, must be one")
    return str(found[0])


def _tensor(file: Path) -> Any:
    """Return the one tensor of a safetensors file, without reading its values."""
    from safetensors import safe_open

    opened: Any = safe_open(file, "np")
    names = list(opened.keys())
    if len(names) != 1:
        raise DataError(f"data.embeddings: {file}: {len(names)} tensors, must be one")
    tensor = opened.get_slice(names[0])
    if tensor.get_dtype() not in ("F16", "F32", "F64"):
        raise DataError(f"data.embeddings: {file}: values of type {tensor.get_dtype()}, must be F16, F32 or F64")
    return tensor


def _floats(rows: Rows, path: Path) -> Rows:
    """Return the rows in memory, C-contiguous, float32 unless they are float16. Raises DataError for NaN and
    infinity."""
    out = np.ascontiguousarray(rows, np.float16 if rows.dtype == np.float16 else np.float32)
    if not np.isfinite(out).all():
        raise DataError(f"data.embeddings: {path}: NaN, infinity, or a value beyond float32 in a row")
    return out
