"""Codes of many texts as one sparse matrix (CSR), in memory or memory-mapped from a folder. No torch.

    <folder>/codes.json     what it is of, sizes, and the checksum of every piece; sealed
             values.npy     (pairs,) float32    row by row, inside a row by latent
             latents.npy    (pairs,) int32
             offsets.npy    (rows + 1,) int64   pairs of row i: offsets[i] to offsets[i + 1]

While it is written, the folder is called <folder>.part and codes.json lists the complete pieces.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from saebench.errors import UserError
from saebench.runs.durable import sync, write_text

FORMAT = "saebench.codes"
FORMAT_VERSION = 1
MANIFEST = "codes.json"
FILES: dict[str, np.dtype[Any]] = {"values": np.dtype("<f4"), "latents": np.dtype("<i4"), "offsets": np.dtype("<i8")}
"""Name of an array (its file is NAME.npy) -> type."""
_HEADER = 128
"""Bytes before the data of a one-dimensional .npy file, the same for every length."""

Chunk = tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.int64]]
"""values, latents, and the number of pairs of each row."""


class CodesError(UserError, ValueError):
    """A folder without complete codes."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Latents that fire (are not 0) on each of `rows` texts."""

    values: NDArray[np.float32]
    latents: NDArray[np.int32]
    offsets: NDArray[np.int64]
    dict_size: int

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> NDArray[np.int64]:
        """(rows,) latents that fire on each text."""
        return np.diff(self.offsets)

    def row(self, number: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """(latents, values) of one text."""
        pairs = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return self.latents[pairs], self.values[pairs]

    def matrix(self) -> Any:
        """scipy's (rows, dict_size) csr_array over the same memory."""
        from scipy.sparse import csr_array

        return csr_array((self.values, self.latents, self.offsets), shape=(self.rows, self.dict_size))

    def dense(self) -> NDArray[np.float32]:
        """(rows, dict_size); for small ones."""
        return np.asarray(self.matrix().toarray(), dtype=np.float32)

    @classmethod
    def of(cls, dense: NDArray[Any]) -> Codes:
        """Codes of a dense (rows, dict_size) array; NaN and infinity are refused."""
        if not np.isfinite(dense).all():
            raise CodesError("codes hold NaN or infinity")
        values, latents, counts = chunk_of(np.ascontiguousarray(dense, dtype=np.float32))
        return cls(values, latents, offsets_of(counts), dense.shape[1])


def chunk_of(dense: NDArray[np.float32]) -> Chunk:
    """Return the non-zero entries of a dense, contiguous (rows, dict_size) array."""
    width = dense.shape[1]
    places = np.flatnonzero(dense)
    counts = np.bincount(places // width, minlength=len(dense)).astype(np.int64)
    return dense.ravel()[places], (places % width).astype(np.int32), counts


def offsets_of(counts: NDArray[Any]) -> NDArray[np.int64]:
    """(rows + 1,) from the number of pairs of each row."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)


def joined(chunks: list[Chunk], dict_size: int) -> Codes:
    """Codes of consecutive chunks of rows."""
    if not chunks:
        return Codes(np.empty(0, np.float32), np.empty(0, np.int32), np.zeros(1, np.int64), dict_size)
    values, latents, counts = (np.concatenate(part) for part in zip(*chunks, strict=True))
    return Codes(values, latents, offsets_of(counts), dict_size)


# --- on disk ---------------------------------------------------------------------------------------------------------


def read_codes(folder: Path) -> Codes:
    """Memory-map the codes and check every byte against its checksum. Raises CodesError with the reason."""
    about = _read_manifest(folder)
    if not about.get("whole"):
        raise CodesError(f"{folder}: codes of {about.get('rows', 0):,} rows, but incomplete: the writer was stopped")
    arrays = {name: _mapped(folder / f"{name}.npy", kind) for name, kind in FILES.items()}
    codes = Codes(arrays["values"], arrays["latents"], arrays["offsets"], int(about["dict_size"]))
    if codes.rows != about["rows"] or len(codes.values) != about["pairs"] or len(codes.latents) != about["pairs"]:
        raise CodesError(f"{folder}: {codes.rows:,} rows, expected {about['rows']:,}: a file was cut off")
    for piece in about["pieces"]:
        if _digest(codes, piece) != piece["sha256"]:
            raise CodesError(f"{folder}: rows {piece['row']:,} to {piece['row'] + piece['rows']:,} are damaged")
    return codes


def _mapped(path: Path, kind: np.dtype[Any]) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise CodesError(f"{path}: cannot be read: {error}") from error
    if found.dtype != kind or found.ndim != 1:
        raise CodesError(f"{path}: not a list of {kind}")
    return found


def write_codes(
    folder: Path,
    about: dict[str, Any],
    rows: int,
    dict_size: int,
    piece: Callable[[int, int], Chunk],
    rows_per_piece: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Codes:
    """Return the codes in `folder`; if they are incomplete, write them from the last complete piece on.

    `piece(start, stop)` gives the codes of these rows; pieces always begin at multiples of `rows_per_piece`, so that
    what is written does not depend on where a writer was stopped. `about` goes into codes.json.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / MANIFEST).is_file():
            try:
                return read_codes(folder)
            except CodesError:
                shutil.rmtree(folder)
        part = folder.with_name(f"{folder.name}.part")
        with _Writing(part, about | {"dict_size": dict_size, "rows_per_piece": rows_per_piece}) as writing:
            for start in range(writing.rows, rows, rows_per_piece):
                progress(start)
                writing.append(piece(start, min(start + rows_per_piece, rows)))
            writing.finish()
        part.replace(folder)
        sync(folder.parent)
    return read_codes(folder)


class _Writing:
    """A folder of codes that is written piece by piece."""

    def __init__(self, part: Path, about: dict[str, Any]) -> None:
        self._part, self._about = part, about
        self._pieces = self._sound_pieces()
        self.rows = sum(piece["rows"] for piece in self._pieces)
        self._pairs = sum(piece["pairs"] for piece in self._pieces)
        part.mkdir(parents=True, exist_ok=True)
        self._files = {name: self._opened(name) for name in FILES}

    def _sound_pieces(self) -> list[dict[str, Any]]:
        """Return the leading pieces that are complete and belong to the same SAE and texts."""
        try:
            held = _read_manifest(self._part)
            codes = _mapped_unfinished(self._part, held)
        except (CodesError, OSError, ValueError, KeyError):
            return []
        if any(held.get(key) != value for key, value in json.loads(json.dumps(self._about)).items()):
            return []
        sound = []
        for piece in held["pieces"]:
            if piece["row"] + piece["rows"] > codes.rows or _digest(codes, piece) != piece["sha256"]:
                break
            sound.append(piece)
        return sound

    def _opened(self, name: str) -> BinaryIO:
        """The file, cut after the last sound piece."""
        path, kind = self._part / f"{name}.npy", FILES[name]
        path.touch()
        file = path.open("r+b")
        count = self.rows + 1 if name == "offsets" else self._pairs
        file.truncate(_HEADER + count * kind.itemsize if self.rows else _HEADER)
        file.seek(0)
        file.write(npy_header(kind, count))
        file.seek(0, io.SEEK_END)
        if name == "offsets" and not self.rows:
            file.write(np.zeros(1, kind).tobytes())
        return file

    def append(self, chunk: Chunk) -> None:
        values, latents, counts = chunk
        offsets = self._pairs + np.cumsum(counts, dtype="<i8")
        for name, array in (("values", values), ("latents", latents), ("offsets", offsets)):
            self._files[name].write(np.ascontiguousarray(array, dtype=FILES[name]).tobytes())
            self._files[name].flush()
        piece = {"row": self.rows, "rows": len(counts), "pair": self._pairs, "pairs": len(values)}
        piece["sha256"] = digest_of_piece(values, latents, offsets)
        self._pieces.append(piece)
        self.rows, self._pairs = self.rows + len(counts), self._pairs + len(values)
        self._note(whole=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def finish(self) -> None:
        for name, file in self._files.items():
            file.seek(0)
            file.write(npy_header(FILES[name], self.rows + 1 if name == "offsets" else self._pairs))
            file.flush()
            sync(self._part / f"{name}.npy")
        self._note(whole=True)

    def _note(self, *, whole: bool) -> None:
        held = {"format": FORMAT, "format_version": FORMAT_VERSION, "whole": whole, **self._about}
        held |= {"rows": self.rows, "pairs": self._pairs, "pieces": self._pieces}
        write_text(self._part / MANIFEST, json.dumps(held, indent=1) + "\n", durable=whole)


def npy_header(kind: np.dtype[Any], count: int) -> bytes:
    out = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(out, described)
    if len(out.getvalue()) != _HEADER:
        raise CodesError(f"a .npy header of {len(out.getvalue())} bytes, expected {_HEADER}")
    return out.getvalue()


def _mapped_unfinished(part: Path, held: dict[str, Any]) -> Codes:
    """Return the numbers of a file whose header may have another length."""
    arrays = {name: np.memmap(part / f"{name}.npy", kind, "r", _HEADER) for name, kind in FILES.items()}
    return Codes(arrays["values"], arrays["latents"], arrays["offsets"], int(held["dict_size"]))


def _digest(codes: Codes, piece: dict[str, Any]) -> str:
    rows = slice(piece["row"] + 1, piece["row"] + piece["rows"] + 1)
    pairs = slice(piece["pair"], piece["pair"] + piece["pairs"])
    return digest_of_piece(codes.values[pairs], codes.latents[pairs], codes.offsets[rows])


def digest_of_piece(values: NDArray[Any], latents: NDArray[Any], offsets: NDArray[Any]) -> str:
    """Return the SHA-256 of values, latents and row ends, as stored on disk."""
    found = hashlib.sha256()
    for name, array in (("values", values), ("latents", latents), ("offsets", offsets)):
        found.update(np.ascontiguousarray(array, dtype=FILES[name]).data)
    return found.hexdigest()


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        held = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CodesError(f"{path}: cannot be read: {error}") from error
    if not isinstance(held, dict) or held.get("format") != FORMAT or held.get("format_version") != FORMAT_VERSION:
        raise CodesError(f"{path}: not codes that this version of saebench can read")
    return held


def chunks(rows: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of consecutive runs of at most `size` rows."""
    return ((start, min(start + size, rows)) for start in range(0, rows, size))
