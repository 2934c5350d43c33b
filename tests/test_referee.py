"""The numbers on record are those a referee would compute: with numpy alone, in float64, from what lies on disk.

Nothing here goes through the store, the metrics or the SAE classes: the embeddings are the cache's .npy files, the
hold-out follows from the hash of each text, the weights are the arrays of sae.safetensors.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from sae_examples import TYPES, example
from safetensors.numpy import load_file

import saebench
from saebench.config import DataConfig, DatasetConfig, TrainConfig, TrialConfig
from saebench.runs.events import Event, Verdict
from saebench.runs.paths import TrialPaths
from saebench.stores import cache
from saebench.trial.run import run_trial

Array = np.ndarray[Any, np.dtype[Any]]

CHANGES: dict[str, dict[str, Any]] = {
    "topk": {"k": 8, "preprocess": "unit"},
    "batchtopk": {"k": 8, "preprocess": "layer_norm"},
    "matryoshka": {"k": 8, "preprocess": "center"},
    "vanilla": {"l1_coeff": 0.05},
    "p_anneal": {"target_l0": 12},
    "jumprelu": {"target_l0": 12},
    "gated": {"target_l0": 12, "preprocess": "none"},
    "omp": {"k": 8, "refit_every": 3},
    "abs_topk": {"k": 8, "ortho_coeff": 0.05},
    "hierarchical_topk": {"k": 8},
}
"""Type -> fields of its example that are changed: together they have every preprocessing, and a sparsity for 192
latents."""
HOLDOUT = 0.25


@pytest.fixture(scope="module")
def data(glosses: Path, minilm_path: str) -> DataConfig:
    dataset = DatasetConfig(path="parquet", data_files=str(glosses))
    return DataConfig(model=minilm_path, dataset=dataset, num_examples=700, holdout=HOLDOUT)


@pytest.fixture(scope="module")
def cache_dir(data: DataConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    cache.build(data, folder)
    return folder


@pytest.fixture(scope="module")
def held_out(cache_dir: Path) -> Array:
    """(N, 384) float64: the embeddings of the texts of the test part: their hash, as a fraction of 2^64, lies below two
    thirds of the hold-out."""
    texts = pyarrow.parquet.read_table(next(cache_dir.glob("embeddings/*/*-texts-*.parquet")))["text"].to_pylist()
    rows = np.load(next(cache_dir.glob("embeddings/*/*-rows-*.npy")))
    assert rows.shape == (700, 384)
    assert len(set(texts)) == 700
    share = [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=16).digest()[:8], "big") / 2**64 for t in texts]
    found = rows[np.array(share) < HOLDOUT * 2 / 3].astype(np.float64)
    assert 80 < len(found) < 160
    return found


@pytest.mark.parametrize("kind", TYPES)
def test_a_referee_gets_the_same_numbers(
    kind: str, data: DataConfig, cache_dir: Path, held_out: Array, tmp_path: Path
) -> None:
    recorded = trained(kind, data, cache_dir, tmp_path)
    weights = {name: array.astype(np.float64) for name, array in load_file(tmp_path / "sae/sae.safetensors").items()}
    codes, x_hat, unsure = reconstruction(kind, weights, held_out)
    n, fires, doubts = len(held_out), codes != 0, int(unsure.sum())

    errors = ((held_out - x_hat) ** 2).sum(1)
    variance = ((held_out - held_out.mean(0)) ** 2).sum()
    dead = int((~fires.any(0)).sum())
    lengths = np.linalg.norm(held_out, axis=1) * np.linalg.norm(x_hat, axis=1)
    assert recorded["test/examples"] == n
    assert recorded["test/mse"] == pytest.approx(errors.mean() / 384, rel=1e-4)
    assert recorded["test/fvu"] == pytest.approx(errors.sum() / variance, rel=1e-4)
    assert recorded["test/explained_variance"] == pytest.approx(1 - errors.sum() / variance, abs=1e-4)
    cosine = (held_out * x_hat).sum(1) / lengths
    assert recorded["test/cosine"] == pytest.approx(cosine.mean(), abs=1e-4)
    assert recorded["test/cosine_p5"] == pytest.approx(np.percentile(cosine, 5), abs=1e-3)
    assert recorded["test/knn_overlap_at_10"] == pytest.approx(shared_neighbours(held_out, x_hat), abs=2e-3)
    # Which latents fire is the same but where float32 and float64 may round to different sides of a threshold.
    assert doubts < 10
    assert recorded["test/l0"] * n == pytest.approx(fires.sum(), abs=doubts + 1e-6)
    assert recorded["test/dead_features"] == pytest.approx(dead, abs=doubts)
    assert recorded["test/dead_fraction"] == pytest.approx(dead / 192, abs=doubts / 192)
    for key, q in (("test/l0_p5", 5), ("test/l0_p95", 95)):
        assert recorded[key] == pytest.approx(np.percentile(fires.sum(1), q), abs=1.0 if doubts else 1e-6)

    kept = load_file(tmp_path / "evaluation.safetensors")
    assert kept["squared_error"] == pytest.approx(errors, rel=1e-3)
    assert np.abs(kept["l0"] - fires.sum(1)).sum() <= doubts
    assert np.abs(kept["firing"] - fires.sum(0)).sum() <= doubts


@pytest.mark.parametrize("kind", ["topk", "batchtopk", "jumprelu"])
def test_a_loaded_sae_computes_what_was_recorded(
    kind: str, data: DataConfig, cache_dir: Path, held_out: Array, tmp_path: Path
) -> None:
    recorded = trained(kind, data, cache_dir, tmp_path)
    sae, x = saebench.load_sae(tmp_path / "sae"), torch.from_numpy(held_out).float()
    latents, x_hat = sae.encode(x), sae(x)
    assert float((latents > 0).sum()) / len(x) == pytest.approx(recorded["test/l0"], rel=1e-6)
    assert float((x - x_hat).double().square().mean()) == pytest.approx(recorded["test/mse"], rel=1e-5)
    if CHANGES.get(kind, {}).get("preprocess") not in ("unit", "layer_norm"):
        assert torch.allclose(sae.decode(latents), x_hat, atol=1e-6)


def trained(kind: str, data: DataConfig, cache_dir: Path, folder: Path) -> dict[str, float]:
    """Train one trial as a worker does; what it recorded at its end."""
    config = TrialConfig(
        sweep="s",
        number=0,
        stratum="x",
        point="p",
        seed=3,
        data=data,
        sae=example(kind, dict_size=192, **CHANGES.get(kind, {})),  # type: ignore[arg-type]
        train=TrainConfig(samples=6000, batch_size=64, lr=3e-3, eval_every=3000),
        extra_metrics=("knn_overlap_at_10",),
    )
    reported: list[Event] = []

    def report(event: Event) -> Verdict:
        reported.append(event)
        return Verdict.GO

    run_trial(config, TrialPaths(folder), "cpu", report, cache_dir=cache_dir)
    assert json.loads((folder / "sae" / "sae.json").read_text())["config"]["type"] == kind
    return dict(reported[-1].values)


def reconstruction(kind: str, w: dict[str, Array], x: Array) -> tuple[Array, Array, Array]:
    """(latents, reconstruction, which decisions hang on the rounding), written from the papers' formulas."""
    how = CHANGES.get(kind, {}).get("preprocess", "center_scale")
    shift: Array = x.mean(1, keepdims=True) if how == "layer_norm" else w["preprocessing.shift"]
    scale: Array = w["preprocessing.scale"]
    if how in ("unit", "layer_norm"):
        shift = shift if how == "layer_norm" else np.zeros(1)
        scale = np.linalg.norm(x - shift, axis=1, keepdims=True)
    if kind == "omp":
        codes, unsure = pursuit((x - shift) / scale - w["b_dec"], w["W_dec"], 8, 3)
        return codes, (codes @ w["W_dec"] + w["b_dec"]) * scale + shift, unsure
    pre = ((x - shift) / scale - w["b_dec"]) @ w["W_enc"].reshape(384, 192) + w["b_enc"]
    if kind == "abs_topk":
        size = np.sort(np.abs(pre), axis=1)
        codes, margin = np.where(np.abs(pre) >= size[:, -8:-7], pre, 0), np.abs(pre) - size[:, -8:-7]
        margin = np.where(margin == 0, np.abs(pre) - size[:, -9:-8], margin)
    elif kind in ("topk", "hierarchical_topk"):
        bound = np.maximum(np.sort(pre, axis=1)[:, -8:-7], 0)
        codes, margin = np.where(pre >= bound, np.maximum(pre, 0), 0), pre - bound
        margin = np.where(pre == bound, pre - np.sort(pre, axis=1)[:, -9:-8], margin)
    elif kind in ("batchtopk", "matryoshka", "jumprelu"):
        bound = w["threshold"] + (w["offset"] if kind == "jumprelu" else 0)
        codes, margin = np.where(pre > bound, pre, 0), pre - bound
    elif kind == "gated":
        magnitude = (pre - w["b_enc"]) * np.exp(w["r_mag"]) + w["b_mag"]
        codes, margin = np.where(pre > w["offset"], np.maximum(magnitude, 0), 0), pre - w["offset"]
    else:
        codes, margin = w["scale"] * np.maximum(pre - w["offset"], 0), pre - w["offset"]
        assert (w["scale"] == 1) == (kind == "vanilla"), "only a target_l0 is calibrated"
    assert (codes >= 0).all() or kind == "abs_topk"
    return codes, (codes @ w["W_dec"] + w["b_dec"]) * scale + shift, np.abs(margin) < 2e-7


def pursuit(z: Array, rows: Array, k: int, every: int) -> tuple[Array, Array]:
    """(latents, which decisions hang on the rounding): greedy picks of the row with the largest product with what is
    left; two rounds of non-negative coordinate descent after each `every` picks, three at the end."""
    codes, unsure = np.zeros((len(z), len(rows))), np.zeros((len(z), len(rows)), dtype=bool)
    for code, target, doubts in zip(codes, z, unsure, strict=True):
        picks: list[int] = []
        for n in range(1, k + 1):
            products = rows @ (target - code @ rows)
            products[picks] = -np.inf
            second, best = np.argsort(products)[-2:]
            doubts[best] = products[best] - products[second] < 1e-6
            picks.append(best)
            code[best] = products[best]
            for _ in range(3 if n == k else 2 if n % every == 0 else 0):
                for f in picks:
                    code[f] = max(0.0, code[f] + rows[f] @ (target - code @ rows))
    return codes, unsure


def shared_neighbours(x: Array, x_hat: Array) -> float:
    """Mean share of the ten nearest neighbours by cosine that are the same before and after, one row at a time."""
    near = []
    for rows in (x, x_hat):
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosine = unit @ unit.T
        np.fill_diagonal(cosine, -2)
        near.append(np.argsort(-cosine, axis=1)[:, :10])
    return float(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*near, strict=True)]))
