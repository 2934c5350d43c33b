"""The rows of a `DiskActivationStore`: those in its files, mapped, and those in memory that follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from saebench.stores.directory import MANIFEST, Written, map_rows, read_tensors, remove_strays, write_tensors
from saebench.stores.manifest import File, has_content
from saebench.stores.pending import Pending


class DiskRows:
    """Examples of `shape` (components, neurons). Not locked: the store that owns it does that."""

    def __init__(self, folder: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._folder, self._shape, self._dtype = folder, shape, dtype
        self.reset()

    def reset(self) -> None:
        """Forget everything; do not touch files."""
        self._files = Written()
        self._maps: list[npt.NDArray[Any]] = []
        self._memory = [Pending(self._shape[1], self._dtype) for _ in range(self._shape[0])]

    def open(self) -> None:
        """Read the manifest, check sizes, map the shards. Raises DataError for another layout and for damage."""
        self.reset()
        self._files = Written.read(self._folder, self._layout())
        self._maps = [self._map(file, end - start) for start, end, file in self._files.shards]
        if self._files.ahead is not None:
            start, file = self._files.ahead
            for component, rows in read_tensors(self._folder, file).items():
                self._memory[int(component)].put(rows[self.written - start :])

    def delete(self) -> None:
        """Forget everything and delete the files."""
        (self._folder / MANIFEST).unlink(missing_ok=True)
        self.reset()
        remove_strays(self._folder, [])

    # --- counts ---

    @property
    def written(self) -> int:
        """Number of examples in the shards."""
        return self._files.count

    @property
    def paired(self) -> int:
        """Number of complete examples that are only in memory."""
        return min(map(len, self._memory))

    @property
    def counts(self) -> list[int]:
        """Number of rows per component."""
        return [self.written + len(pending) for pending in self._memory]

    # --- writing ---

    def put(self, rows: Tensor, component: int) -> None:
        """Add rows to those in memory."""
        self._memory[component].put(rows)

    def write_shard(self, count: int) -> None:
        """Write the first `count` examples in memory as a new shard."""
        rows = torch.stack([pending.rows[:count] for pending in self._memory], dim=1)
        start = self.written
        file = write_tensors(self._folder, f"{start:012d}-{start + count:012d}", {"rows": rows})
        self._files = Written((*self._files.shards, (start, start + count, file)), self._files.ahead)
        self._maps.append(self._map(file, count))
        for pending in self._memory:
            pending.drop(count)
        self._files.write(self._folder, self._layout())

    def write_ahead(self) -> None:
        """Write the excess rows of components that have more rows than others to a separate file."""
        waiting = {str(c): pending.rows for c, pending in enumerate(self._memory) if len(pending)}
        before = self._files
        new = (self.written, write_tensors(self._folder, "ahead", waiting)) if waiting else None
        self._files = Written(before.shards, new)
        if before != self._files or before.shards:
            self._files.write(self._folder, self._layout())
        self.remove_strays()

    def remove_strays(self) -> None:
        """Remove files that a killed writer left."""
        remove_strays(self._folder, self._files.files)

    # --- reading ---

    def read(self, places: npt.NDArray[np.int64]) -> Tensor:
        """Return (len(places), components, neurons): the examples at these places, in the order they were stored."""
        out = torch.empty(len(places), *self._shape, dtype=self._dtype)
        starts = [start for start, _, _ in self._files.shards]
        which = np.searchsorted(starts, places, side="right") - 1
        which[places >= self.written] = -1
        for number in np.unique(which).tolist():
            chosen = np.flatnonzero(which == number)
            if number < 0:
                local = torch.from_numpy(places[chosen] - self.written)
                out[chosen] = torch.stack([pending.rows[local] for pending in self._memory], dim=1)
            else:
                rows = torch.from_numpy(self._maps[number][places[chosen] - starts[number]])
                out[chosen] = rows.view(self._dtype)
        return out

    def damaged(self) -> list[str]:
        """Return the names of the files whose checksum differs; reads everything."""
        return [file.name for file in self._files.files if not has_content(self._folder, file)]

    def _layout(self) -> dict[str, Any]:
        n_components, n_neurons = self._shape
        return {"n_neurons": n_neurons, "n_components": n_components, "dtype": str(self._dtype).removeprefix("torch.")}

    def _map(self, file: File, count: int) -> npt.NDArray[Any]:
        return map_rows(self._folder / file.name, self._dtype, (count, *self._shape))
