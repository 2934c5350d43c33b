"""A buffer of activations on disk: larger than memory, read by many processes at once (its files: see directory.py)."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock, Timeout
from torch import Tensor

from saebench.errors import LockedError
from saebench.stores import forks
from saebench.stores.base import ActivationStore, StoreFullError, check_positive, check_rows
from saebench.stores.directory import LOCK, NUMPY
from saebench.stores.disk_rows import DiskRows


class DiskActivationStore(ActivationStore):
    """`store[i]` is (n_components, n_neurons). Examples are written in shards of `max_cache_size`; until then they are
    in memory and can be read. `extend` returns at once; its Future is done when the rows are stored.

    One process may write (a second one gets LockedError), any number may read. Close the store, or use it as a context
    manager, to write the examples in memory. `seed` fixes `shuffle`, which changes the reading order and does not move
    data on the disk. Raises DataError if `storage_path` holds a store of another shape or type, or a damaged one.
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
        if dtype not in NUMPY:
            raise ValueError(f"dtype: {dtype}: must be one of {', '.join(map(str, NUMPY))}")
        self._shape, self._dtype = (n_components, n_neurons), dtype
        self.storage_path, self.max_cache_size, self.max_items = Path(storage_path), max_cache_size, max_items
        self._seed, self._generator = seed, np.random.Generator(np.random.PCG64(seed))
        self._order: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._lock = threading.RLock()
        self._writer: FileLock | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None
        self._rows = DiskRows(self.storage_path, self._shape, dtype)
        self._counts = self._rows.counts
        if empty_dir:
            self.empty()
        else:
            self._open()

    def __reduce__(self) -> tuple[Callable[..., DiskActivationStore], tuple[Any, ...]]:
        """Pickle the store by its directory: write the examples in memory first; a copy reads in the same order."""
        self.flush()
        n_components, n_neurons = self._shape
        given = {"max_items": self.max_items, "dtype": self._dtype, "seed": self._seed}
        place = (n_neurons, self.storage_path, self.max_cache_size, n_components)
        return _reopen, (place, given, self._order, self._generator)

    # --- writing -----------------------------------------------------------------------------------------------------

    def append(self, item: Tensor, component_idx: int = 0) -> Future[None]:
        """Store one (n_neurons,) row, in the background."""
        return self.extend(item.unsqueeze(0), component_idx)

    def extend(self, batch: Tensor, component_idx: int = 0) -> Future[None]:
        """Store (rows, n_neurons), in the background. If they do not all fit, store none and raise StoreFullError
        here, not in the Future."""
        check_rows(batch, self._shape[1], component_idx, self._shape[0])
        rows = batch.detach().to("cpu", self._dtype, copy=True)
        with self._lock:
            self._start_writing()
            if self.max_items is not None and self._counts[component_idx] + len(rows) > self.max_items:
                raise StoreFullError
            self._counts[component_idx] += len(rows)
            assert self._thread is not None
            self._last = self._thread.submit(self._store_rows, rows, component_idx)
            return self._last

    def flush(self) -> None:
        """Write every example that is in memory."""
        self._wait_for_writes()
        with self._lock:
            if self._rows.paired:
                self._rows.write_shard(self._rows.paired)

    def empty(self) -> None:
        """Remove all rows and delete their files."""
        self._wait_for_writes()
        with self._lock:
            self._acquire_lock()
            self._rows.delete()
            self._follow()

    def close(self) -> None:
        """Write the examples in memory and release the lock on the directory."""
        if self._writer is None:
            return
        try:
            self.flush()
            self._rows.write_ahead()
        finally:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_writing(self) -> None:
        """Take the write lock, then read what another writer has added since this store was opened."""
        if self._writer is not None:
            return
        self._acquire_lock()
        order = self._order
        try:
            self._open()
        except BaseException:
            self._release()
            raise
        self._order = order if len(order) <= len(self) else self._order
        self._rows.remove_strays()

    def _acquire_lock(self) -> None:
        if self._writer is not None:
            return
        self.storage_path.mkdir(parents=True, exist_ok=True)
        writer = FileLock(self.storage_path / LOCK, timeout=0)
        try:
            writer.acquire()
        except Timeout:
            raise LockedError(f"{self.storage_path}: another process writes to this store; wait for its end") from None
        self._writer = writer
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        forks.add(self)

    def _release(self) -> None:
        assert self._thread is not None
        assert self._writer is not None
        self._thread.shutdown()
        self._writer.release()
        self._thread = self._writer = None
        forks.discard(self)

    def _store_rows(self, rows: Tensor, component: int) -> None:
        with self._lock:
            self._rows.put(rows, component)
            while self._rows.paired >= self.max_cache_size:
                self._rows.write_shard(self.max_cache_size)

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
        """Return (n_components, n_neurons) for an int, (n, n_components, n_neurons) for a slice or index array; a tuple
        indexes components and neurons, too. Raises IndexError beyond the stored examples."""
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
        """Shuffle the reading order of the current examples; examples added later follow them."""
        self._order = self._generator.permutation(len(self))

    def verify(self) -> list[str]:
        """Return the names of the files whose checksum differs; reads everything."""
        return self._rows.damaged()

    def _read(self, places: npt.NDArray[np.int64]) -> Tensor:
        self._wait_for_writes()
        shuffled = places < len(self._order)
        places = places.copy()
        places[shuffled] = self._order[places[shuffled]]
        with self._lock:
            return self._rows.read(places)

    # --- state -------------------------------------------------------------------------------------------------------

    def _wait_for_writes(self) -> None:
        """Wait for the background thread; raise its exception."""
        if self._last is not None:
            self._last.result()

    def _open(self) -> None:
        """Read the directory's content."""
        try:
            self._rows.open()
        finally:
            self._follow()

    def _follow(self) -> None:
        """Start again from the stored rows, in their order."""
        self._order = np.zeros(0, np.int64)
        self._counts = self._rows.counts

    # --- forks -------------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait for the background thread, and keep the lock (see forks.py)."""
        while True:
            with contextlib.suppress(Exception):  # the next use of the rows raises it again
                self._wait_for_writes()
            self._lock.acquire()
            if self._last is None or self._last.done():
                return
            self._lock.release()

    def after_fork_in_parent(self) -> None:
        self._lock.release()

    def after_fork_in_child(self) -> None:
        """Continue as a reader; the parent still writes."""
        self._writer = self._thread = self._last = None
        self._lock.release()


def _reopen(
    place: tuple[Any, ...],
    given: dict[str, Any],
    order: npt.NDArray[np.int64],
    generator: np.random.Generator,
) -> DiskActivationStore:
    store = DiskActivationStore(*place, **given)
    store._order, store._generator = order, generator
    return store
