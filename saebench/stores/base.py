"""The contract of a buffer of activations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import Future
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset


class StoreFullError(IndexError):
    """The store has no room; none of the rows have been stored."""

    def __init__(self, message: str = "Activation store is full") -> None:
        super().__init__(message)


class ActivationStore(Dataset[Tensor], ABC):
    """Rows of activations, one series of rows per component (a layer, a model, a point in one).

    Components fill up independently. An example consists of one row of every component, so there are as many examples
    as the shortest component has rows. A store is a `Dataset`, so it can be passed to a `DataLoader`.

    >>> class ListStore(ActivationStore):
    ...     def __init__(self):
    ...         self.rows = []
    ...     def append(self, item, component_idx=0):
    ...         self.rows.append(item)
    ...     def extend(self, batch, component_idx=0):
    ...         self.rows.extend(batch)
    ...     def empty(self):
    ...         self.rows.clear()
    ...     @property
    ...     def n_components(self):
    ...         return 1
    ...     @property
    ...     def current_activations_stored_per_component(self):
    ...         return [len(self.rows)]
    ...     def __len__(self):
    ...         return len(self.rows)
    ...     def __getitem__(self, index):
    ...         return self.rows[index]
    >>> store = ListStore()
    >>> store.append(torch.zeros(8))
    >>> store.extend(torch.ones(3, 8))
    >>> len(store), store[1].sum().item()
    (4, 8.0)
    >>> from torch.utils.data import DataLoader
    >>> [batch.shape for batch in DataLoader(store, batch_size=3)]
    [torch.Size([3, 8]), torch.Size([1, 8])]
    """

    @abstractmethod
    def append(self, item: Tensor, component_idx: int) -> Future[None] | None:
        """Store one (n_neurons,) row; return a Future if the store works in the background, else None. Raises
        StoreFullError if there is no room."""

    @abstractmethod
    def extend(self, batch: Tensor, component_idx: int) -> Future[None] | None:
        """Store the rows of a (rows, n_neurons) batch: all of them, or none and StoreFullError."""

    @abstractmethod
    def empty(self) -> None:
        """Remove all rows."""

    @property
    @abstractmethod
    def n_components(self) -> int:
        """Number of components."""

    @property
    @abstractmethod
    def current_activations_stored_per_component(self) -> list[int]:
        """Rows of each component."""

    @abstractmethod
    def __len__(self) -> int:
        """Examples: rows of the shortest component."""

    @abstractmethod
    def __getitem__(self, index: Any) -> Tensor:
        """Return the example(s) at `index`; raise IndexError beyond the stored ones."""

    def shuffle(self) -> None:
        """Reorder the examples in place, if the store can."""

    @final
    def fill_with_test_data(
        self, n_batches: int = 1, batch_size: int = 16, n_components: int = 1, input_features: int = 256
    ) -> None:
        """Extend components 0 to n_components - 1 with n_batches × (batch_size, input_features) of uniform noise."""
        sizes = {"n_batches": n_batches, "batch_size": batch_size, "n_components": n_components}
        for name, value in {**sizes, "input_features": input_features}.items():
            check_positive(name, value)
        for _ in range(n_batches):
            for component in range(n_components):
                self.extend(torch.rand(batch_size, input_features, dtype=torch.float32), component)


def check_positive(name: str, value: int) -> None:
    """Raises ValueError unless `value` is a whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: {value!r}: must be a whole number above 0")


def check_rows(rows: Tensor, n_neurons: int, component_idx: int, n_components: int) -> None:
    """Raises ValueError unless `rows` is (n, n_neurons), IndexError unless the component exists."""
    if rows.ndim != 2 or rows.shape[1] != n_neurons:
        raise ValueError(f"rows of shape {tuple(rows.shape)}: this store takes (rows, {n_neurons})")
    if not 0 <= component_idx < n_components:
        raise IndexError(f"component {component_idx}: must be below {n_components}, the number of components")
