"""A buffer of activations on disk: larger than memory, read by many processes at once.

<storage_path>/
    manifest.json                            shape, type and the shards; replaced by rename
    000000000000-000000010000-<sha>.safetensors   rows start to end: tensor "rows", (end - start, components, neurons)
    ahead-<sha>.safetensors                  rows of longer components that wait for partners; a tensor per component
    writer.lock                              held by the one process that writes
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from saebench.errors import DataError, LockedError
from saebench.paths import write_json
from saebench.stores.base import ActivationStore, StoreFullError, check_positive, check_rows
from saebench.stores.entry import File, dropped_on_failure, has_content, has_size

_NUMPY = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "<i2", torch.float64: "<f8"}
"""Type -> how NumPy maps it; bfloat16, which NumPy lacks, by its bits."""
_OWN_FILE = re.compile(r"\.?(\d{12}-\d{12}|ahead)-[0-9a-f]{12}\.safetensors(\.tmp)?")


class DiskActivationStore(ActivationStore):
    """`store[i]` is (n_components, n_neurons). Examples are written in shards of `max_cache_size`; what is not written
    yet is in memory and readable all the same. `extend` returns at once; its Future tells when the rows are taken in.

    One process writes (LockedError for a second), any number reads. Close it, or use it as a context manager: what is
    in memory is written then. `seed` fixes `shuffle`, which reorders reading and moves nothing on the disk.
    Raises DataError where `storage_path` holds a store of another shape or type, or a damaged one.
    """

    def __init__(
        self,
        n_neurons: int,
        storage_path: str | Path,
        max_cache_size: int = 10_000,
        n_components: int = 1,
        *,
        max_items: int | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        empty_dir: bool = False,
    ) -> None:
        sizes = {"n_neurons": n_neurons, "max_cache_size": max_cache_size, "n_components": n_components}
        for name, value in sizes.items():
            check_positive(name, value)
        if dtype not in _NUMPY:
            raise ValueError(f"dtype: {dtype}: one of {', '.join(map(str, _NUMPY))}")
        self._shape, self._dtype = (n_components, n_neurons), dtype
        self.storage_path, self.max_cache_size, self.max_items = Path(storage_path), max_cache_size, max_items
        self._seed, self._generator = seed, np.random.Generator(np.random.PCG64(seed))
        self._order: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._lock = threading.RLock()
        self._writer: FileLock | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None
        self._process = os.getpid()
        self._shards: list[tuple[int, int, File]] = []
        self._maps: list[npt.NDArray[Any]] = []
        self._ahead: File | None = None
        self._memory: list[list[Tensor]] = []
        self._forget()
        if empty_dir:
            self.empty()
        else:
            self._open()

    def __reduce__(self) -> tuple[Callable[..., DiskActivationStore], tuple[Any, ...]]:
        """A copy in another process opens the directory anew, and sees what is on the disk."""
        n_components, n_neurons = self._shape
        return _reopen, (n_neurons, self.storage_path, self.max_cache_size, n_components, self._dtype, self._seed)

    # --- writing -----------------------------------------------------------------------------------------------------

    def append(self, item: Tensor, component_idx: int = 0) -> Future[None]:
        """Store one (n_neurons,) row, in the background."""
        return self.extend(item.unsqueeze(0), component_idx)

    def extend(self, batch: Tensor, component_idx: int = 0) -> Future[None]:
        """Store (rows, n_neurons), in the background: all, or none and StoreFullError (raised here, not later)."""
        check_rows(batch, self._shape[1], component_idx, self._shape[0])
        rows = batch.detach().to("cpu", self._dtype, copy=True)
        with self._lock:
            self._start_writing()
            if self.max_items is not None and self._counts[component_idx] + len(rows) > self.max_items:
                raise StoreFullError
            self._counts[component_idx] += len(rows)
            assert self._thread is not None
            self._last = self._thread.submit(self._take, rows, component_idx)
            return self._last

    def flush(self) -> None:
        """Write every example that is in memory."""
        self._settle()
        with self._lock:
            if self._paired():
                self._write_shard(self._paired())

    def empty(self) -> None:
        """Forget all rows and delete their files."""
        self._settle()
        with self._lock:
            self._claim()
            (self.storage_path / "manifest.json").unlink(missing_ok=True)
            self._forget()
            self._remove_strays()

    def close(self) -> None:
        """Write what is in memory and let go of the directory."""
        if self._writer is None or os.getpid() != self._process:
            return
        try:
            self.flush()
            self._write_ahead()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_writing(self) -> None:
        """Become the writer; what another one wrote since this store was opened comes first."""
        if self._writer is not None:
            return
        self._claim()
        order = self._order
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        self._order = order if len(order) <= len(self) else self._order
        self._remove_strays()

    def _claim(self) -> None:
        if self._writer is not None:
            return
        self.storage_path.mkdir(parents=True, exist_ok=True)
        writer = FileLock(self.storage_path / "writer.lock", timeout=0)
        try:
            writer.acquire()
        except Timeout:
            raise LockedError(f"{self.storage_path}: another process writes to this store") from None
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")

    def _release(self) -> None:
        assert self._thread is not None
        assert self._writer is not None
        self._thread.shutdown()
        self._writer.release()
        self._thread = self._writer = None

    def _remove_strays(self) -> None:
        """Files that a writer left when it was killed or the disk was full. Other people's files stay."""
        known = {file.name for _, _, file in self._shards} | {self._ahead.name if self._ahead else ""}
        for path in self.storage_path.iterdir():
            if _OWN_FILE.fullmatch(path.name) and path.name not in known:
                path.unlink(missing_ok=True)

    def _take(self, rows: Tensor, component: int) -> None:
        with self._lock:
            self._memory[component].append(rows)
            while self._paired() >= self.max_cache_size:
                self._write_shard(self.max_cache_size)

    def _write_shard(self, count: int) -> None:
        rows = torch.stack([torch.cat(series)[:count] for series in self._memory], dim=1)
        start = self._written
        file = self._write(f"{start:012d}-{start + count:012d}", {"rows": rows})
        self._shards.append((start, start + count, file))
        self._maps.append(self._map(file, count))
        self._memory = [[torch.cat(series)[count:]] for series in self._memory]
        self._write_manifest()

    def _write_ahead(self) -> None:
        """Rows that wait for partners go to a file of their own."""
        waiting = {str(c): torch.cat(series) for c, series in enumerate(self._memory) if sum(map(len, series))}
        old, self._ahead = self._ahead, self._write("ahead", waiting) if waiting else None
        if old != self._ahead or self._shards:
            self._write_manifest()
        if old is not None and old != self._ahead:
            (self.storage_path / old.name).unlink(missing_ok=True)

    def _write(self, stem: str, tensors: Mapping[str, Tensor]) -> File:
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        digest = hashlib.sha256(content).hexdigest()
        name = f"{stem}-{digest[:12]}.safetensors"
        aside = self.storage_path / f".{name}.tmp"
        with dropped_on_failure(aside), aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.rename(self.storage_path / name)
        return File(name=name, bytes=len(content), sha256=digest)

    def _write_manifest(self) -> None:
        shards = [{"start": start, "end": end, **file.model_dump()} for start, end, file in self._shards]
        ahead = self._ahead.model_dump() if self._ahead else None
        write_json(self.storage_path / "manifest.json", {**self._identity(), "shards": shards, "ahead": ahead})

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def n_components(self) -> int:
        return self._shape[0]

    @property
    def current_activations_stored_per_component(self) -> list[int]:
        return list(self._counts)

    def __len__(self) -> int:
        return min(self._counts)

    def __getitem__(self, index: Any) -> Tensor:
        """An int gives (n_components, n_neurons), anything that indexes rows (n, n_components, n_neurons); a tuple
        indexes components and neurons too. IndexError beyond what is stored."""
        if isinstance(index, tuple):
            rows = self[index[0]]
            return rows[index[1:] if rows.ndim == 2 else (slice(None), *index[1:])]
        if isinstance(index, slice):
            return self._read(np.arange(*index.indices(len(self))))
        places = np.asarray(index)
        if places.dtype == bool:
            places = np.flatnonzero(places)
        if places.size and not (-len(self) <= places.min() and places.max() < len(self)):
            raise IndexError(f"index {index}: {len(self):,} examples are stored")
        rows = self._read(np.atleast_1d(places % max(len(self), 1)).astype(np.int64))
        return rows if places.ndim else rows[0]

    def shuffle(self) -> None:
        """A random order of the present examples; examples that come later follow them."""
        self._order = self._generator.permutation(len(self))

    def verify(self) -> list[str]:
        """Names of the files whose content is not what was written; reads everything."""
        files = [file for _, _, file in self._shards] + ([self._ahead] if self._ahead else [])
        return [file.name for file in files if not has_content(self.storage_path, file)]

    def _read(self, places: npt.NDArray[np.int64]) -> Tensor:
        self._settle()
        shuffled = places < len(self._order)
        places = places.copy()
        places[shuffled] = self._order[places[shuffled]]
        out = torch.empty(len(places), *self._shape, dtype=self._dtype)
        with self._lock:
            starts = [start for start, _, _ in self._shards]
            which = np.searchsorted(starts, places, side="right") - 1
            which[places >= self._written] = -1
            for number in np.unique(which).tolist():
                chosen = np.flatnonzero(which == number)
                if number < 0:
                    tail = torch.stack([torch.cat(series)[: self._paired()] for series in self._memory], dim=1)
                    out[chosen] = tail[places[chosen] - self._written]
                else:
                    rows = torch.from_numpy(self._maps[number][places[chosen] - starts[number]])
                    out[chosen] = rows.view(self._dtype)
        return out

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def _written(self) -> int:
        return self._shards[-1][1] if self._shards else 0

    def _paired(self) -> int:
        """Examples that are in memory only."""
        return min(sum(map(len, series)) for series in self._memory)

    def _settle(self) -> None:
        """Wait for the background; raises what went wrong there."""
        if self._last is not None and os.getpid() == self._process:
            self._last.result()

    def _identity(self) -> dict[str, Any]:
        n_components, n_neurons = self._shape
        return {"n_neurons": n_neurons, "n_components": n_components, "dtype": str(self._dtype).removeprefix("torch.")}

    def _forget(self) -> None:
        self._shards, self._maps, self._ahead = [], [], None
        self._memory = [[torch.empty(0, self._shape[1], dtype=self._dtype)] for _ in range(self._shape[0])]
        self._order = np.zeros(0, np.int64)
        self._counts = [0] * self._shape[0]

    def _open(self) -> None:
        """Read the manifest, check sizes, map the shards."""
        self._forget()
        path = self.storage_path / "manifest.json"
        if path.exists():
            self._adopt(path, json.loads(path.read_text("utf-8")))
        self._counts = [self._written + sum(map(len, series)) for series in self._memory]

    def _adopt(self, path: Path, manifest: dict[str, Any]) -> None:
        for key, value in self._identity().items():
            if manifest.get(key) != value:
                raise DataError(f"{path}: {key}: the store has {manifest.get(key)!r}, not {value!r}")
        for shard in manifest["shards"]:
            start, end = shard.pop("start"), shard.pop("end")
            self._shards.append((start, end, self._whole(File(**shard))))
            self._maps.append(self._map(self._shards[-1][2], end - start))
        if manifest["ahead"] is not None:
            self._ahead = self._whole(File(**manifest["ahead"]))
            for component, rows in safetensors.torch.load_file(self.storage_path / self._ahead.name).items():
                self._memory[int(component)].append(rows)

    def _whole(self, file: File) -> File:
        if not has_size(self.storage_path, file):
            raise DataError(f"{self.storage_path / file.name}: missing or truncated (it had {file.bytes:,} bytes)")
        return file

    def _map(self, file: File, count: int) -> npt.NDArray[Any]:
        """The tensor of a safetensors file (8 bytes of length, a JSON header, then the data) without reading it."""
        path = self.storage_path / file.name
        with path.open("rb") as opened:
            offset = 8 + int.from_bytes(opened.read(8), "little")
        return np.memmap(path, _NUMPY[self._dtype], "r", offset, (count, *self._shape))


def _reopen(
    n_neurons: int, path: Path, max_cache_size: int, n_components: int, dtype: torch.dtype, seed: int
) -> DiskActivationStore:
    return DiskActivationStore(n_neurons, path, max_cache_size, n_components, dtype=dtype, seed=seed)
