"""Activations: buffers in memory and on disk, the cache of embeddings, and the store that trials read.

Names are imported on first use: `saebench.stores.cache` must not import torch into the scheduler's process.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench.stores.base import ActivationStore as ActivationStore
    from saebench.stores.base import StoreFullError as StoreFullError
    from saebench.stores.disk import DiskActivationStore as DiskActivationStore
    from saebench.stores.sbert import ActivationsStoreSBERT as ActivationsStoreSBERT
    from saebench.stores.sbert import open_store as open_store
    from saebench.stores.streamed import DataExhausted as DataExhausted
    from saebench.stores.tensor import TensorActivationStore as TensorActivationStore

_HOME = {
    "ActivationStore": "base",
    "StoreFullError": "base",
    "TensorActivationStore": "tensor",
    "DiskActivationStore": "disk",
    "ActivationsStoreSBERT": "sbert",
    "open_store": "sbert",
    "DataExhausted": "streamed",
}
"""Public name -> its module."""

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"saebench.stores.{_HOME[name]}"), name)
    raise AttributeError(f"module 'saebench.stores' has no attribute {name!r}")
