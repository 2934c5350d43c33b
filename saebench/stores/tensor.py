"""A buffer of activations in memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from saebench.stores.base import ActivationStore, StoreFullError, check_positive, check_rows


class TensorActivationStore(ActivationStore):
    """(max_items, n_components, n_neurons), allocated at once; `store[i]` is (n_components, n_neurons).

    `seed` fixes `shuffle`; the store has its own generator.
    """

    def __init__(
        self,
        max_items: int,
        n_neurons: int,
        n_components: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        for name, value in (("max_items", max_items), ("n_neurons", n_neurons), ("n_components", n_components)):
            check_positive(name, value)
        self._data = torch.empty(max_items, n_components, n_neurons, device=device, dtype=dtype)
        self._stored = [0] * n_components
        self._generator = torch.Generator().manual_seed(seed)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the generator by its state: it cannot be sent to workers of a `DataLoader` that are not forked."""
        return {**self.__dict__, "_generator": self._generator.get_state().numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        generator = torch.Generator()
        generator.set_state(torch.from_numpy(state["_generator"]))
        self.__dict__.update(state, _generator=generator)

    @property
    def max_items(self) -> int:
        return self._data.shape[0]

    @property
    def n_components(self) -> int:
        return self._data.shape[1]

    @property
    def n_neurons(self) -> int:
        return self._data.shape[2]

    @property
    def current_activations_stored_per_component(self) -> list[int]:
        return list(self._stored)

    def append(self, item: Tensor, component_idx: int = 0) -> None:
        """Store one (n_neurons,) row; StoreFullError if the component is full."""
        self.extend(item.unsqueeze(0), component_idx)

    def extend(self, batch: Tensor, component_idx: int = 0) -> None:
        """Store (rows, n_neurons): all, or none and StoreFullError."""
        check_rows(batch, self.n_neurons, component_idx, self.n_components)
        start = self._stored[component_idx]
        if start + len(batch) > self.max_items:
            raise StoreFullError
        self._data[start : start + len(batch), component_idx] = batch.detach()
        self._stored[component_idx] += len(batch)

    def empty(self) -> None:
        self._stored = [0] * self.n_components

    def shuffle(self) -> None:
        """One permutation of the examples, the same for all components. Excess rows of a longer component have no
        partners yet and are not moved."""
        order = torch.randperm(len(self), generator=self._generator).to(self._data.device)
        self._data[: len(self)] = self._data[order]

    def __len__(self) -> int:
        return min(self._stored)

    def __getitem__(self, index: Any) -> Tensor:
        """Index like a (len, n_components, n_neurons) tensor: rows that are not stored are out of range."""
        return self._data[: len(self)][index]

    def __sizeof__(self) -> int:
        """Bytes of the allocation."""
        return self._data.element_size() * self._data.nelement()
