"""The mapping that `ActivationsStoreSBERT` accepts in place of a DataConfig, as other projects' stores do."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from saebench.config import DataConfig, DatasetConfig, HoldoutConfig
from saebench.errors import DataError
from saebench.stores.base import check_positive

_REQUIRED = frozenset(
    {"dataset_path", "model_batch_size", "device", "num_batches_in_buffer", "num_examples", "batch_size"}
)


@dataclass(frozen=True)
class StreamOptions:
    """The settings in a mapping."""

    data: DataConfig
    device: str
    batch_size: int
    seed: int
    model_batch_size: int
    num_batches_in_buffer: int
    shares: tuple[float, float]
    """Validation and test."""


def read_mapping(cfg: Mapping[str, Any]) -> StreamOptions:
    """Raises DataError for missing keys, ValueError for invalid values."""
    missing = sorted(_REQUIRED - cfg.keys())
    if missing:
        raise DataError(f"cfg: {', '.join(missing)}: missing")
    sizes = {key: _size(cfg, key) for key in sorted(_REQUIRED - {"dataset_path", "device"})}
    dataset = DatasetConfig(
        path=str(cfg["dataset_path"]),
        name=cfg.get("dataset_name"),
        split=cfg.get("split", "train"),
        text_column=cfg.get("text_column", "text"),
        delimiter=cfg.get("delimiter"),
        encoding=cfg.get("encoding"),
    ).model_copy(update={"data_files": cfg.get("data_files")})  # as it is: also paths, or files for each split
    data = DataConfig(
        model="(given)",
        dataset=dataset,
        num_examples=sizes["num_examples"],
        clean=cfg.get("clean", "whitespace"),
    )
    return StreamOptions(
        data=data,
        device=str(cfg["device"]),
        batch_size=sizes["batch_size"],
        seed=operator.index(cfg.get("seed", 0)),
        model_batch_size=sizes["model_batch_size"],
        num_batches_in_buffer=sizes["num_batches_in_buffer"],
        shares=_shares(cfg.get("holdout", 0.0)),
    )


def _size(cfg: Mapping[str, Any], key: str) -> int:
    """Return a whole number above 0; 1e5 is accepted."""
    value = cfg[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    elif hasattr(value, "__index__") and not isinstance(value, bool):  # NumPy's
        value = operator.index(value)
    check_positive(f"cfg: {key}", value)
    return int(value)


def _shares(holdout: Any) -> tuple[float, float]:
    """Return the shares of validation and test; 0 holds out no text. Raises ValueError for invalid shares."""
    try:
        if isinstance(holdout, Mapping):
            parts = HoldoutConfig(**holdout)
            return parts.validation, parts.test
        if 0 <= float(holdout) < 1:
            return float(holdout) / 3, float(holdout) * 2 / 3
    except (TypeError, ValueError):
        pass
    raise ValueError(f"cfg: holdout: {holdout}: must be at least 0 and less than 1, or {{validation: 0.05, test: 0.1}}")
