"""Write codes to a file for other programs, block by block: npz (scipy.sparse.load_npz reads it), Parquet, JSON
lines."""

from __future__ import annotations

import json
import tempfile
import zipfile
from abc import ABC, abstractmethod
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from saebench.errors import UserError
from saebench.latents.codes import Codes, npy_header
from saebench.runs.durable import replacing

CHUNK = 1 << 20
_NPZ = {"data": "<f4", "indices": "<i4", "indptr": "<i8"}


class Sink(ABC):
    """Writes blocks; the file gets its name when the context ends without an error, otherwise it is removed."""

    def __init__(self, out: Path, dict_size: int) -> None:
        self.out, self.dict_size, self.rows = out, dict_size, 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.aside = Path(self._stack.enter_context(replacing(self.out)).file.name)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written: {error.strerror or error}") from error
        self.begin()
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with self._stack:
            self.end()
            if error is not None:
                raise error  # so that `replacing` removes the file

    @abstractmethod
    def begin(self) -> None:
        """Open the temporary file."""

    @abstractmethod
    def write(self, codes: Codes) -> None:
        """Write the codes of the next texts."""

    @abstractmethod
    def end(self) -> None:
        """Close it; `aside` is then complete."""


class JSONLines(Sink):
    """{"row": 0, "latents": [3, 17], "values": [0.5, 0.25]} per text."""

    def begin(self) -> None:
        self._file = self.aside.open("w", encoding="utf-8")

    def write(self, codes: Codes) -> None:
        for i in range(codes.rows):
            latents, values = codes.row(i)
            row = {"row": self.rows + i, "latents": latents.tolist(), "values": values.tolist()}
            self._file.write(json.dumps(row) + "\n")
        self.rows += codes.rows

    def end(self) -> None:
        self._file.close()


class Parquet(Sink):
    """Columns row (int64), latents (list of int32), values (list of float32)."""

    def begin(self) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        self._schema = pa.schema(
            [("row", pa.int64()), ("latents", pa.list_(pa.int32())), ("values", pa.list_(pa.float32()))],
            metadata={"dict_size": str(self.dict_size)},
        )
        self._writer: Any = ParquetWriter(self.aside, self._schema, compression="zstd")

    def write(self, codes: Codes) -> None:
        import pyarrow as pa

        ends = pa.array(codes.offsets, pa.int64()).cast(pa.int32())
        columns = [
            pa.array(np.arange(self.rows, self.rows + codes.rows)),
            pa.ListArray.from_arrays(ends, pa.array(codes.latents, pa.int32())),
            pa.ListArray.from_arrays(ends, pa.array(codes.values, pa.float32())),
        ]
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self.rows += codes.rows

    def end(self) -> None:
        self._writer.close()


class Npz(Sink):
    """A CSR matrix (texts, latents) as `scipy.sparse.load_npz` reads it."""

    def begin(self) -> None:
        self._types: dict[str, np.dtype[Any]] = {
            "data": np.dtype("<f4"),
            "indices": np.dtype("<i4"),
            "indptr": np.dtype("<i8"),
        }
        self._files = {name: tempfile.TemporaryFile(dir=self.out.parent) for name in self._types}  # noqa: SIM115
        self._files["indptr"].write(np.zeros(1, "<i8").tobytes())
        self._pairs = 0

    def write(self, codes: Codes) -> None:
        ends = codes.offsets[1:] + self._pairs
        for name, array in (("data", codes.values), ("indices", codes.latents), ("indptr", ends)):
            self._files[name].write(np.ascontiguousarray(array, self._types[name]).tobytes())
        self.rows, self._pairs = self.rows + codes.rows, self._pairs + len(codes.values)

    def end(self) -> None:
        with zipfile.ZipFile(self.aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, file in self._files.items():
                count = self.rows + 1 if name == "indptr" else self._pairs
                with file as raw, archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    raw.seek(0)
                    member.write(npy_header(self._types[name], count))
                    while block := raw.read(CHUNK):
                        member.write(block)
            for name, value in (("format", np.array(b"csr")), ("shape", np.array([self.rows, self.dict_size]))):
                with archive.open(f"{name}.npy", "w") as member:
                    np.lib.format.write_array(member, value, allow_pickle=False)


SINKS: dict[str, type[Sink]] = {".npz": Npz, ".parquet": Parquet, ".jsonl": JSONLines}
"""Suffix -> how codes are written."""
