"""One MLflow store for all tests of this folder."""

from __future__ import annotations

import pytest
import sweep_data
from sweep_data import Store


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A sqlite store with the sweep `demo` (topk, batchtopk 4% better, jumprelu 2% worse; one trial failed)."""
    return sweep_data.make_store(tmp_path_factory.mktemp("store"))
