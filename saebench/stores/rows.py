"""Mini-batches from a cache entry: a permutation per epoch, read from a memory map (or the GPU).

The batches depend only on (entry, num_examples, holdout, deduplicate, seed, batch_size, position) and the rows set
aside: not on the device, the number of workers, or earlier reads. Inside a batch, the rows of an epoch are in the order
of the stream, which reads the file once from front to back; the permutation decides which rows are in it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from saebench.errors import DataError
from saebench.stores.entry import CacheEntry, Index
from saebench.stores.manifest import ROWS_PER_SHARD
from saebench.stores.prefetch import prefetch
from saebench.stores.sources import take_rows
from saebench.stores.texts import EVALUATED, Part

RESIDENT_FRACTION = 0.25
"""The rows of all parts stay on the GPU if they take less than this share of its free memory, or of this trial's part
of it if trials share the GPU."""
PREFETCH = 4
"""Batches that wait in pinned memory, if the rows do not stay on the GPU."""


class CachedRows:
    """The mini-batches of a cache entry for one trial."""

    def __init__(self, entry: CacheEntry, batch_size: int, seed: int, device: str | torch.device = "cpu") -> None:
        if entry.num_train < batch_size:
            raise DataError(
                f"{entry.num_train:,} training texts do not fill one batch of {batch_size:,}; lower train.batch_size"
            )
        self.entry, self.batch_size, self.seed = entry, batch_size, seed
        self.device = torch.device(device)
        self.d_in, self.num_train = entry.d_in, entry.num_train
        self.num_validation, self.num_test = entry.num_validation, entry.num_test
        self._shards = entry.rows()
        self._served: Index = np.arange(self.num_train)
        self._epoch: tuple[int, Index, Index] | None = None
        self._order: tuple[int, Tensor] | None = None
        self._position = 0
        fits = self._fits()
        self._resident = self._load(entry.train_index) if fits else None
        self._held = {part: self._load(entry.index_of(part)) for part in EVALUATED} if fits else {}
        self._coming: Iterator[Tensor] | None = None

    def next_batch(self) -> Tensor:
        """(batch_size, d_in) float32 on the device; endless, a new permutation every epoch."""
        if self._resident is not None:
            batch = self._resident[self._places_there(self._position)].float()
        elif self.device.type == "cuda":
            if self._coming is None:
                self._coming = self._moved(prefetch(self._pinned(self._position), PREFETCH))
            batch = next(self._coming)
        else:
            out = torch.empty(self.batch_size, self.d_in, dtype=torch.float32)
            batch = self._batch(self._places(self._position), out).to(self.device)
        self._position += self.batch_size
        return batch

    def sample(self, n: int) -> Tensor:
        """(min(n, num_train), d_in) training rows: those of the lowest text hashes, in the order of the stream."""
        return self._gather(self.entry.sample_index(n)).to(self.device)

    def set_aside(self, n: int, places: Tensor) -> None:
        """From now on `next_batch` returns none of these rows of `sample(n)`, unless there are no others."""
        held = self.entry.sample_index(n)[places.numpy(force=True)]
        free = np.flatnonzero(~np.isin(self.entry.train_index, held))
        self._served = free if len(free) else np.arange(self.num_train)
        self._order = self._coming = None

    def sample_labels(self, n: int) -> list[Any] | None:
        """Labels of the rows of `sample(n)`."""
        return self.entry.labels(self.entry.sample_index(n))

    def part(self, part: Part, batch_size: int) -> Iterator[Tensor]:
        """Yield every row of a part once, in the order of the stream."""
        self.entry.check_sources()  # again: a trial is long, and this is what its numbers are measured on
        index = self.entry.index_of(part)
        for start in range(0, len(index), batch_size):
            if part in self._held:
                yield self._held[part][start : start + batch_size].float()
                continue
            yield self._gather(index[start : start + batch_size]).to(self.device)

    def labels(self, part: Part) -> list[Any] | None:
        """Labels in the order of `part()`."""
        return self.entry.labels(self.entry.index_of(part))

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which to continue exactly here."""
        return {"kind": "cached", **self._settings(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises DataError if it is of other data or another seed."""
        for key, value in {"kind": "cached", **self._settings()}.items():
            if state.get(key) != value:
                raise DataError(
                    f"saved position: {key}: {state.get(key)!r}, but this store has {value!r}; load it into a store "
                    "with the same settings"
                )
        self._position = int(state["position"])
        self._coming = None

    def _settings(self) -> dict[str, Any]:
        entry = self.entry
        return {"cache_key": entry.cache_key, "count": entry.count, "train": self.num_train, "seed": self.seed}

    # --- which rows --------------------------------------------------------------------------------------------------

    def _places(self, position: int) -> list[Index]:
        """Return the training rows (0 to num_train - 1) of the batch at `position`: one ascending run per epoch."""
        return [np.sort(self._permutation(epoch)[part]) for epoch, part in self._runs(position)]

    def _places_there(self, position: int) -> Tensor:
        """Return the same as one tensor on the device, from an order that is copied there once per epoch: copying
        positions per batch would be a sync each."""
        there = []
        for epoch, part in self._runs(position):
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, torch.from_numpy(self._permutation(epoch)).to(self.device)
            there.append(self._order[1][part].sort().values)
        return torch.cat(there) if len(there) > 1 else there[0]

    def _runs(self, position: int) -> Iterator[tuple[int, slice]]:
        """Return (epoch, positions in its permutation) of each part of the batch at `position`."""
        missing = self.batch_size
        while missing:
            epoch, offset = divmod(position, len(self._served))
            count = min(missing, len(self._served) - offset)
            yield epoch, slice(offset, offset + count)
            position += count
            missing -= count

    def _permutation(self, epoch: int) -> Index:
        """Return the permutation of an epoch, a function of the seed, the epoch and the used rows. A thread that still
        prefetches from before `set_aside` may call this, too."""
        kept, served = self._epoch, self._served
        if kept is None or kept[0] != epoch or kept[1] is not served:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            kept = self._epoch = epoch, served, served[generator.permutation(len(served))]
        return kept[2]

    # --- where from --------------------------------------------------------------------------------------------------

    def _batch(self, runs: list[Index], out: Tensor) -> Tensor:
        start = 0
        for run in runs:
            self._gather(self.entry.train_index[run], out[start : start + len(run)])
            start += len(run)
        return out

    def _gather(self, index: Index, out: Tensor | None = None) -> Tensor:
        """(len(index), d_in) float32 rows of the entry; `index` ascending, so that each shard is visited once."""
        out = torch.empty(len(index), self.d_in, dtype=torch.float32) if out is None else out
        into = out.numpy()
        cuts = np.searchsorted(index, np.arange(len(self._shards) + 1) * ROWS_PER_SHARD)
        for number, shard in enumerate(self._shards):
            start, stop = cuts[number], cuts[number + 1]
            if start == stop:
                continue
            take_rows(shard, index[start:stop] - number * ROWS_PER_SHARD, into[start:stop])
        return out

    def _pinned(self, position: int) -> Iterator[Tensor]:
        while True:
            out = torch.empty(self.batch_size, self.d_in, dtype=torch.float32, pin_memory=True)
            yield self._batch(self._places(position), out)
            position += self.batch_size

    def _moved(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Yield each batch on the GPU, while the next is copied; `batches` are pinned and endless."""
        beside: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        for batch in batches:
            with torch.cuda.stream(beside):
                coming.append((batch.to(self.device, non_blocking=True), beside.record_event()))
            if len(coming) > 1:
                arrived, event = coming.popleft()
                used_by = torch.cuda.current_stream(self.device)
                used_by.wait_event(event)
                arrived.record_stream(used_by)  # its memory was given to the stream beside
                yield arrived

    def _fits(self) -> bool:
        if self.device.type != "cuda":
            return False
        size = self.entry.count * self.d_in * self._shards[0].dtype.itemsize
        return size < RESIDENT_FRACTION * _may_take(self.device)

    def _load(self, index: Index) -> Tensor:
        """Return these rows of the entry on the device, in their stored type."""
        dtype = torch.float16 if self._shards[0].dtype == np.float16 else torch.float32
        rows = torch.empty(len(index), self.d_in, dtype=dtype, device=self.device)
        for start in range(0, len(index), ROWS_PER_SHARD):
            part = index[start : start + ROWS_PER_SHARD]
            rows[start : start + len(part)] = self._gather(part).to(self.device)
        return rows


def _may_take(device: torch.device) -> int:
    """Return the bytes of a GPU that this process may use; memory that other new processes will take still counts as
    free."""
    free, total = torch.cuda.mem_get_info(device)
    fraction = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # not before torch 2.8
    return min(free, int(total * fraction(device.index))) if fraction else free
