"""Floors: the scores of dictionaries without training, on the same texts at the same k.

    pca      the k first principal components of the training rows; at every width the same
    data     dict_size training rows, k-means centres of them, or random directions, all of length 1 about the mean;
    kmeans   codes are the k picks, of either sign, of an orthogonal matching pursuit
    random

FVU, probing and neighbours on the test part, as an SAE's (evaluation.py). Computed once per (data, k, dict_size) and
kept in the cache; floor_process.py runs `python -m saebench.trial.floors` beside a sweep, on one core.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench import telemetry
from saebench.config import DataConfig
from saebench.metrics import EVAL, TEST
from saebench.runs.durable import write_json
from saebench.trial.floor_process import FORMAT, LONGEST, cache_file, end_after, read_cached

if TYPE_CHECKING:
    from torch import Tensor

    from saebench.stores.entry import CacheEntry

TRAIN_ROWS = 16_384
"""Training rows from which dictionaries are built."""
WIDEST_GRAM = 8_192
"""Most directions for which the Gram matrix is kept (256 MiB)."""
_PART = 2_048
"""Rows per chunk."""


def main() -> None:
    """Read a request from stdin and write the floors, from the cache if they are there."""
    telemetry.disable()
    if hasattr(os, "nice"):
        os.nice(10)
    from saebench.stores import cache

    request = json.load(sys.stdin)
    data, cache_dir = DataConfig.model_validate(request["data"]), Path(request["cache_dir"])
    entry = cache.find(data, cache_dir, request["cache_key"])
    if entry is None:
        sys.exit(f"embeddings {request['cache_key']}: not in {cache_dir}")
    found: list[dict[str, Any]] = []
    for k, dict_size in request["sizes"]:
        found += cached(entry, data, k, dict_size, cache_dir)
    write_json(Path(request["to"]), {"format": FORMAT, "floors": found})


def cached(entry: CacheEntry, data: DataConfig, k: int, dict_size: int, cache_dir: Path) -> list[dict[str, Any]]:
    """Return the floors at (k, dict_size) from the cache; compute and cache them if missing."""
    file = cache_file(cache_dir, entry.cache_key, data, k, dict_size)
    if (known := read_cached(file)) is not None:
        return known
    found = compute(entry, k, dict_size)
    write_json(file, found)
    return found


@dataclass(frozen=True)
class Floor:
    """Codes and reconstructions without training."""

    name: str
    encode: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Maps rows (n, d) to (codes (n, width) of either sign, reconstruction (n, d))."""


def compute(entry: CacheEntry, k: int, dict_size: int) -> list[dict[str, Any]]:
    """Return a record per floor: floor, k, dict_size, values by metric key, left_out by name."""
    import torch

    rows = torch.from_numpy(entry.read(entry.sample_index(TRAIN_ROWS)))
    records = []
    for name, make in FLOORS.items():
        record: dict[str, Any] = {"floor": name, "k": k, "dict_size": dict_size, "values": {}, "left_out": {}}
        records.append(record)
        try:
            floor = Floor(name, make(rows, k, dict_size))
        except ValueError as error:
            record["left_out"][name] = str(error)
            continue
        _measure(floor, entry, record)
    return records


def _measure(floor: Floor, entry: CacheEntry, record: dict[str, Any]) -> None:
    import torch

    from saebench.trial.metrics import Extras, Sums

    there = torch.from_numpy(entry.read(entry.test_index))
    sums, extras = Sums(), Extras(["knn_overlap_at_10"])
    for x in torch.split(there, _PART):
        codes, x_hat = floor.encode(x)
        sums.update(x, x_hat, codes)
        extras.update(x, x_hat)
    found = sums.result()
    try:
        extras.measure("knn_overlap_at_10", found)
    except ValueError as error:
        record["left_out"]["knn_overlap_at_10"] = str(error)
    try:
        found.values.update(_probing(floor, entry))
    except ValueError as error:
        record["left_out"]["probing"] = str(error)
    record["values"] = {TEST + key.removeprefix(EVAL): value for key, value in found.values.items()}


def _probing(floor: Floor, entry: CacheEntry) -> dict[str, float]:
    import torch

    from saebench.trial import probing

    index, test = entry.sample_index(probing.TRAIN_ROWS), entry.test_index[: probing.TEST_ROWS]
    labels, test_labels = entry.labels(index), entry.labels(test)
    if labels is None or test_labels is None:
        return {}
    here, there = (partial(_codes, floor, torch.from_numpy(entry.read(i))) for i in (index, test))
    return probing.probing({"": here}, labels, {"": there}, test_labels)


def _codes(floor: Floor, rows: Tensor) -> Iterator[Tensor]:
    import torch

    for part in torch.split(rows, _PART):
        yield floor.encode(part)[0]


# --- the floors -------------------------------------------------------------------------------------------------------

Encode = Callable[["Tensor"], tuple["Tensor", "Tensor"]]


def _pca(rows: Tensor, k: int, _dict_size: int) -> Encode:
    """Encode with the k strongest components, all of them in every code."""
    import torch

    mean = rows.double().mean(0)
    centred = rows.double() - mean
    components = torch.linalg.eigh(centred.t() @ centred).eigenvectors.flip(1)[:, :k]

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        codes = (x.double() - mean) @ components
        return codes, codes @ components.t() + mean

    return encode


def _data(rows: Tensor, k: int, dict_size: int) -> Encode:
    import torch

    if len(rows) < dict_size:
        raise ValueError(f"{len(rows)} training rows are fewer than {dict_size} latents")
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:dict_size]
    mean = rows.mean(0)
    return _pursuit(rows[chosen] - mean, mean, k)


def _kmeans(rows: Tensor, k: int, dict_size: int) -> Encode:
    import torch
    from sklearn.cluster import MiniBatchKMeans

    if len(rows) < 2 * dict_size:
        raise ValueError(f"{len(rows)} training rows: {dict_size} centres need twice as many")
    mean = rows.mean(0)
    means = MiniBatchKMeans(dict_size, batch_size=2048, n_init=1, max_iter=20, random_state=0)
    means.fit((rows - mean).numpy())
    return _pursuit(torch.from_numpy(means.cluster_centers_).float(), mean, k)


def _random(rows: Tensor, k: int, dict_size: int) -> Encode:
    import torch

    from saebench.saes.initial import unit_rows

    return _pursuit(unit_rows(dict_size, rows.shape[1], torch.Generator().manual_seed(0)), rows.mean(0), k)


def _pursuit(directions: Tensor, mean: Tensor, k: int) -> Encode:
    """Encode by k picks among directions (F, d) and their negatives: a direction's value has either sign."""
    import torch

    from saebench.saes.pursuit import pursue

    unit = torch.nn.functional.normalize(directions, dim=1)
    both, width = torch.cat([unit, -unit]), len(unit)
    gram = both @ both.t() if len(both) <= WIDEST_GRAM else None

    def encode(x: Tensor) -> tuple[Tensor, Tensor]:
        found = pursue(x - mean, both, gram, min(k, width), refit_every=1)
        signed = torch.where(found.indices < width, found.values, -found.values)
        codes = x.new_zeros(len(x), width).scatter_add_(1, found.indices % width, signed)
        return codes, x - found.residual

    return encode


FLOORS: dict[str, Callable[[Any, int, int], Encode]] = {
    "pca": _pca,
    "data": _data,
    "kmeans": _kmeans,
    "random": _random,
}
"""Name -> function of (training rows, k, dict_size) that returns `encode`; it raises ValueError if it cannot."""

if __name__ == "__main__":
    end_after(LONGEST)
    main()
