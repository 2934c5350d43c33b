"""The decoders of trained SAEs, read with numpy: from the sweep's directory, else from MLflow's artifacts."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saebench.config import SAE_CONFIGS
from saebench.errors import UserError
from saebench.report.artifacts import download
from saebench.report.sources import Source
from saebench.report.table import Row, missing
from saebench.runs.paths import EVALUATION, SAE_WEIGHTS, TrialPaths


@dataclass(frozen=True, eq=False)
class Trained:
    """A complete trial, and where its SAE may be."""

    name: str
    """SWEEP/NUMBER."""
    seed: int
    run_id: str
    source: Source
    paths: TrialPaths | None
    """Its directory, if the sweep's is on this machine."""
    shape: tuple[Any, Any]
    """dict_size and d_in as recorded."""
    signed: bool = False
    """Whether its codes may be negative, so that a decoder row and its opposite are one latent."""

    @property
    def stamp(self) -> list[int] | None:
        """Changes with the files that hold the SAE; None if it is not in the sweep's directory."""
        if self.paths is None or not (self.paths.sae / SAE_WEIGHTS).is_file():
            return None
        there = [p.stat() for p in (self.paths.sae / SAE_WEIGHTS, self.paths.evaluation) if p.is_file()]
        return [number for stat in there for number in (stat.st_size, stat.st_mtime_ns)]


def trained(source: Source, row: Row) -> Trained:
    """A row of the report's frame."""
    number = None if missing(row["trial"]) else int(row["trial"])
    paths = source.paths.trial(number) if source.paths and number is not None else None
    shape = (row.get("dict_size"), row.get("d_in"))
    config = SAE_CONFIGS.get(row.get("type") or "")
    signed = config is not None and config.signed
    return Trained(f"{source.name}/{number}", int(row["seed"]), row["run_id"], source, paths, shape, signed)


@dataclass(frozen=True)
class Dictionary:
    """Decoder rows (latents, d_in) of the latents that fire on a test text; of all of them where `firing_known` is
    false."""

    rows: NDArray[Any]
    firing_known: bool


def local(trial: Trained) -> Dictionary | None:
    """Return the dictionary in the sweep's directory; None if it is missing or damaged."""
    return _read(trial.paths.sae / SAE_WEIGHTS, trial.paths.evaluation, trial.shape) if trial.paths else None


def from_mlflow(trial: Trained) -> Dictionary | None:
    """Return the dictionary from MLflow's artifacts; None if it is missing or damaged."""
    with tempfile.TemporaryDirectory() as folder:
        weights, evaluation = (_fetched(trial, name, folder) for name in ("sae", EVALUATION))
        return _read(weights / SAE_WEIGHTS, evaluation, trial.shape)


def _fetched(trial: Trained, name: str, folder: str) -> Path:
    """Return the artifact in `folder`; a path that does not exist if it cannot be downloaded."""
    try:
        return download(trial.source, trial.run_id, name, Path(folder))
    except UserError:
        return Path(folder, "missing")


def _read(weights: Path, evaluation: Path, shape: tuple[Any, Any]) -> Dictionary | None:
    rows, firing = _tensor(weights, "W_dec"), _tensor(evaluation, "firing")
    if rows is None or rows.ndim != 2 or not np.isfinite(rows).all():
        return None
    if any(not missing(said) and said != there for said, there in zip(shape, rows.shape, strict=True)):
        return None
    if firing is None or len(firing) != len(rows):
        return Dictionary(rows, False)
    return Dictionary(rows[firing > 0], True)


def _tensor(path: Path, name: str) -> NDArray[Any] | None:
    """One tensor of a safetensors file; None if the file or the tensor is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return np.asarray(file.get_tensor(name))
    except (SafetensorError, OSError):
        return None
