"""Floors against numbers by hand and scikit-learn's own pursuit; computed once, by a process of their own."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from saebench.config import DataConfig, DatasetConfig
from saebench.runs.durable import write_json
from saebench.stores import cache
from saebench.trial import floor_process, floors


def entry(n: int = 900, d: int = 12, labelled: bool = True) -> Any:
    generator = torch.Generator().manual_seed(0)
    rows = (torch.randn(n, d, generator=generator) * torch.linspace(0.2, 2, d) + 3).numpy()
    return SimpleNamespace(
        d_in=d,
        cache_key="key",
        test_index=np.arange(600, n),
        sample_index=lambda count: np.arange(min(600, count)),
        read=lambda index: rows[index],
        labels=lambda index: [bool(rows[i, 11] > 3) for i in index] if labelled else None,
    )


def test_principal_components_leave_the_variance_of_the_others() -> None:
    found = floors.compute(entry(), 4, 24)
    pca = next(record for record in found if record["floor"] == "pca")
    rows = entry().read(np.arange(900)).astype(np.float64)
    mean = rows[:600].mean(0)
    basis = np.linalg.svd(rows[:600] - mean, full_matrices=False)[2][:4]
    test = rows[600:] - mean
    left = ((test - test @ basis.T @ basis) ** 2).sum() / ((rows[600:] - rows[600:].mean(0)) ** 2).sum()
    assert pca["values"]["test/fvu"] == pytest.approx(left, rel=1e-9)
    assert pca["values"]["test/l0"] == 4


def test_every_floor_has_what_an_sae_has() -> None:
    found = floors.compute(entry(), 4, 24)
    assert [record["floor"] for record in found] == list(floors.FLOORS)
    for record in found:
        values = record["values"]
        assert {"test/fvu", "test/probing_auc_k5", "test/knn_overlap_at_10", "test/l0"} <= values.keys()
        assert 0 < values["test/fvu"] < 1
        assert values["test/l0"] <= 4
        assert not record["left_out"]
    by_name = {record["floor"]: record["values"]["test/fvu"] for record in found}
    assert by_name["data"] < by_name["pca"], "four of 24 rows, chosen for each text, beat four for all"


def test_the_pursuit_of_either_sign_is_as_good_as_scikit_learns() -> None:
    x = torch.from_numpy(entry().read(np.arange(900)))
    mean = x[:600].mean(0)
    directions = torch.nn.functional.normalize(torch.randn(24, 12, generator=torch.Generator().manual_seed(1)), dim=1)
    codes, x_hat = floors._pursuit(directions, mean, 4)(x[600:])
    assert (codes < 0).any()
    torch.testing.assert_close(codes @ directions + mean, x_hat, atol=1e-4, rtol=1e-4)
    theirs = orthogonal_mp(directions.double().numpy().T, (x[600:] - mean).double().numpy().T, n_nonzero_coefs=4)
    error = np.square((x[600:] - mean).double().numpy() - theirs.T @ directions.double().numpy()).sum()
    assert float((x[600:] - x_hat).double().square().sum()) == pytest.approx(error, rel=0.05)


def test_too_few_rows_and_no_labels_are_said() -> None:
    found = {record["floor"]: record for record in floors.compute(entry(labelled=False), 4, 1000)}
    assert found["data"]["left_out"] == {"data": "600 training rows are fewer than 1000 latents"}
    assert found["kmeans"]["left_out"] == {"kmeans": "600 training rows: 1000 centres need twice as many"}
    assert not any("probing" in key for key in found["random"]["values"])


def test_floors_are_computed_once_per_data_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(model="m", dataset=DatasetConfig(path="p"), num_examples=900)
    first = floors.cached(entry(), data, 2, 8, tmp_path)
    monkeypatch.setattr(floors, "compute", lambda *_: [])
    assert floors.cached(entry(), data, 2, 8, tmp_path) == first
    assert floors.cached(entry(), data, 3, 8, tmp_path) == []
    assert floors.cached(entry(), data.model_copy(update={"num_examples": 800}), 2, 8, tmp_path) == []


def test_the_process_writes_the_floors_of_every_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(model="m", dataset=DatasetConfig(path="p"), num_examples=900)
    request = {
        "data": data.model_dump(mode="json"),
        "cache_dir": str(tmp_path),
        "cache_key": "key",
        "sizes": [(2, 8), (3, 8)],
        "to": str(tmp_path / "floors.json"),
    }
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    monkeypatch.setattr("os.nice", lambda _: None)
    monkeypatch.setattr(cache, "find", lambda *_: entry(300))
    monkeypatch.setattr(floors, "compute", lambda _, k, n: [{"floor": "pca", "k": k, "dict_size": n}])
    floors.main()
    written = json.loads((tmp_path / "floors.json").read_text())
    assert [(f["k"], f["dict_size"]) for f in written["floors"]] == [(2, 8), (3, 8)]
    assert floor_process.measured(tmp_path / "floors.json") == {(2, 8), (3, 8)}
    (tmp_path / "floors.json").write_text('{"floors": 5}')
    assert floor_process.measured(tmp_path / "floors.json") == set()


DATA = DataConfig(model="m", dataset=DatasetConfig(path="p"), num_examples=900)


def test_a_process_without_the_embeddings_says_so(tmp_path: Path) -> None:
    child = floor_process.start(DATA, tmp_path, "0123abcd", [(2, 8)], tmp_path / "floors.json")
    assert child is not None
    said: list[str] = []
    floor_process.finish(child, said.append, patience=60)
    assert said == [f"floors: embeddings 0123abcd: not in {tmp_path}"]
    assert child.returncode == 1


def test_floors_in_the_cache_start_no_process(tmp_path: Path) -> None:
    for k in (2, 3):
        write_json(floor_process.cache_file(tmp_path, "key", DATA, k, 8), [{"floor": "pca", "k": k, "dict_size": 8}])
    to = tmp_path / "floors.json"
    assert floor_process.start(DATA, tmp_path, "key", [(3, 8), (2, 8), (2, 8)], to) is None
    assert floor_process.measured(to) == {(2, 8), (3, 8)}
    assert json.loads(to.read_text())["format"] == floor_process.FORMAT


def sleeper() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], stderr=subprocess.PIPE, text=True)


def test_a_sweep_does_not_wait_long_for_its_floors_and_says_what_is_missing() -> None:
    child, said = sleeper(), list[str]()
    floor_process.finish(child, said.append, patience=0.2)
    assert said == [f"floors (scores without training): still being measured by process {child.pid}; "
                    "the next `saebench report` has them"]  # fmt: skip
    assert child.poll() is None, "left to itself"
    child.kill()
    child.wait()


def test_an_interrupted_sweep_ends_the_process() -> None:
    child = sleeper()
    floor_process.stop(child)
    assert child.returncode is not None


def test_the_process_ends_itself_after_its_time() -> None:
    code = "import time; from saebench.trial import floor_process as f; f.end_after(0.1); time.sleep(600)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50, check=False).returncode == 1
