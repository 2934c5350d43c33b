"""The files of a `DiskActivationStore`.

<folder>/
    manifest.json                            shape, type and the shards; replaced by rename
    000000000000-000000010000-<sha>.safetensors   rows start to end: tensor "rows", (end - start, components, neurons)
    ahead-<sha>.safetensors                  rows of longer components that have no partners yet; a tensor per component
    writer.lock                              held by the one process that writes
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from saebench.errors import DataError
from saebench.runs.durable import write_text
from saebench.stores.manifest import File, has_size, write_file
from saebench.stores.seal import seal, unseal

MANIFEST = "manifest.json"
LOCK = "writer.lock"
NUMPY = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.float64: "<f8"}
"""Type -> how NumPy maps it; bfloat16, which NumPy lacks, by its bits."""
_OWN_FILE = re.compile(
    r"(\d{12}-\d{12}|ahead)-[0-9a-f]{12}\.safetensors"
    r"|\.(manifest\.json|(\d{12}-\d{12}|ahead)\.safetensors)\.[0-9a-f]+\.tmp"
)
"""Names of shards, finished or being written, and of a manifest that is being written."""


@dataclass(frozen=True)
class Written:
    """The content of a manifest."""

    shards: tuple[tuple[int, int, File], ...] = ()
    """First row, last row + 1, file."""
    ahead: tuple[int, File] | None = None
    """The first example of the rows without partners, and their file; later shards may contain some of them."""

    @property
    def count(self) -> int:
        """Examples in the shards."""
        return self.shards[-1][1] if self.shards else 0

    @property
    def files(self) -> list[File]:
        return [file for _, _, file in self.shards] + ([self.ahead[1]] if self.ahead else [])

    @classmethod
    def read(cls, folder: Path, layout: Mapping[str, Any]) -> Self:
        """Return the content, empty if there is no manifest. Raises DataError for a store of another `layout` (shape
        and type), and if the manifest or the size of a file has changed."""
        path = folder / MANIFEST
        if not path.exists():
            return cls()
        try:
            content = unseal(path.read_bytes())
        except ValueError as error:
            raise DataError(
                f"{path}: damaged: {error}; restore it, or write the store again in a new folder"
            ) from error
        for key, value in layout.items():
            if content.get(key) != value:
                raise DataError(
                    f"{path}: {key}: the store was written with {content.get(key)!r}, not {value!r}; use another folder"
                )
        shards = tuple((one.pop("start"), one.pop("end"), File(**one)) for one in content["shards"])
        ahead = content["ahead"] and (content["ahead"].pop("start"), File(**content["ahead"]))
        written = cls(shards, ahead)
        for file in written.files:
            if not has_size(folder, file):
                raise DataError(
                    f"{folder / file.name}: missing or truncated (it had {file.bytes:,} bytes); restore it, or write "
                    "the store again in a new folder"
                )
        return written

    def write(self, folder: Path, layout: Mapping[str, Any]) -> None:
        shards = [{"start": start, "end": end, **file.model_dump()} for start, end, file in self.shards]
        ahead = {"start": self.ahead[0], **self.ahead[1].model_dump()} if self.ahead else None
        write_text(folder / MANIFEST, seal({**layout, "shards": shards, "ahead": ahead}))


def write_tensors(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> File:
    """Write a new safetensors file; its name ends with the beginning of the content's checksum."""
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
    return write_file(folder, stem, ".safetensors", lambda file: file.write(content))


def read_tensors(folder: Path, file: File) -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / file.name)


def map_rows(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> npt.NDArray[Any]:
    """The tensor of a safetensors file (8 bytes of length, a JSON header, then the data) without reading it."""
    with path.open("rb") as opened:
        offset = 8 + int.from_bytes(opened.read(8), "little")
    return np.memmap(path, NUMPY[dtype], "r", offset, tuple(shape))


def remove_strays(folder: Path, known: Iterable[File]) -> None:
    """Remove files of a writer that was killed or met a full disk. Other files stay."""
    names = {file.name for file in known}
    for path in folder.iterdir():
        if _OWN_FILE.fullmatch(path.name) and path.name not in names:
            path.unlink(missing_ok=True)
