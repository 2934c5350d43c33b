"""An SAE on disk: sae.safetensors (every parameter and buffer) beside sae.json (config and shapes). No pickles."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench.config import AnySAEConfig, SAEConfig
from saebench.errors import UserError
from saebench.runs.durable import replacing, write_json
from saebench.runs.paths import SAE_CONFIG, SAE_WEIGHTS
from saebench.saes.base import SAE, SAE_TYPES

FORMAT = "saebench.sae"
FORMAT_VERSION = 2
"""2: the SAEs of an L1 penalty have a `scale`, which is 1 in files of version 1."""
_CONFIG: TypeAdapter[SAEConfig] = TypeAdapter(AnySAEConfig)


class SAEFileError(UserError, ValueError):
    """Raised for a folder that does not hold an SAE that this version can read."""


def save_sae(sae: SAE, folder: str | Path) -> Path:
    """Write `sae` to `folder` (created if missing), bit-exactly; return the folder.

    Each file is written under a temporary name and renamed, the JSON last: if the JSON exists, so do the tensors.
    Raises TypeError for a module that wraps an SAE, as those of saebench.compat do, and for weights not in float32.
    """
    if not isinstance(sae, SAE):
        raise TypeError(
            f"{type(sae).__name__} is not a saebench SAE; convert models of saebench.compat with to_saebench()"
        )
    for name, tensor in sae.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise TypeError(f"{name} is {tensor.dtype}: an SAE is saved in float32: sae.float()")
    folder = Path(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sae.state_dict().items()}
    # One metadata key only: safetensors writes several in random order, and equal SAEs should give equal files.
    with replacing(folder / SAE_WEIGHTS) as new:
        save_file(tensors, new.file.name, metadata={"format": f"{FORMAT}/{FORMAT_VERSION}"})
    write_json(
        folder / SAE_CONFIG,
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "saebench": _version(),
            "d_in": sae.d_in,
            "dict_size": sae.dict_size,
            "config": sae.config.model_dump(mode="json"),
        },
    )
    return folder


def load_sae(folder: str | Path, device: str | torch.device = "cpu") -> SAE:
    """Load the SAE in `folder`, bit-exactly, ready to encode. `folder` may also be a trial's folder, or one of the two
    files of an SAE.

    Raises FileNotFoundError for a missing file, and SAEFileError, a ValueError, for a file that is truncated, not
    saebench's, of a newer format, inconsistent with the other, or holds NaN or infinity, and for an unavailable device.
    """
    folder = _folder(folder)
    path = folder / SAE_CONFIG
    about = _read_json(path)
    with torch.device("meta"):  # the sizes in the JSON may exceed any memory
        expected = _empty(about, path).state_dict()
    added = {"scale": torch.ones(())} if about["format_version"] < 2 else {}
    tensors = _read_tensors(folder / SAE_WEIGHTS, expected, added)
    sae = _empty(about, path)
    sae.load_state_dict(tensors)
    try:
        return sae.to(device).requires_grad_(False).eval()
    except (AssertionError, RuntimeError) as error:  # torch raises these for a missing or unknown device
        raise SAEFileError(f"device {str(device)!r}: {str(error).splitlines()[0]}") from error


def _folder(given: str | Path) -> Path:
    """Return the folder that holds sae.json."""
    if str(given).startswith(("runs:/", "models:/", "mlflow-artifacts:/")):
        fetch = f"mlflow.artifacts.download_artifacts({str(given)!r})"
        raise SAEFileError(f"{given}: an address in MLflow; load the folder that {fetch} returns")
    folder = Path(given)
    if folder.is_file():
        folder = folder.parent
    if (folder / SAE_CONFIG).exists():
        return folder
    trials = sorted(path.parent.parent for path in folder.glob(f"trials/*/sae/{SAE_CONFIG}"))
    if trials:
        raise FileNotFoundError(
            f"{folder}: is a sweep; load one of its {len(trials)} trials, such as {trials[0]} "
            "(`saebench best` names the best)"
        )
    return folder / "sae" if (folder / "sae" / SAE_CONFIG).exists() else folder


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise SAEFileError(f"{path}: incomplete or invalid JSON ({error})") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise SAEFileError(f"{path}: format: must be {FORMAT!r}: not a file that saebench wrote")
    saved = about.get("format_version")
    if isinstance(saved, bool) or not isinstance(saved, int) or not 1 <= saved <= FORMAT_VERSION:
        raise SAEFileError(
            f"{path}: format_version: {saved!r}, this saebench reads up to {FORMAT_VERSION}; "
            f"update it (the file was written by saebench {about.get('saebench', '?')})"
        )
    return about


def whole_tensors(path: Path, damaged: type[UserError]) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file. Raises FileNotFoundError, or `damaged` if the file is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise damaged(f"{path}: not a whole safetensors file ({error}); copy or export it again") from error


def _read_tensors(path: Path, expected: dict[str, Tensor], added: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a file; `added` are those that a file of its version lacks, with their values."""
    tensors = {name: value for name, value in added.items() if name in expected} | whole_tensors(path, SAEFileError)
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise SAEFileError(f"{path}: {name}: {'missing' if name in expected else 'unknown tensor'}")
        ours, theirs = expected[name], tensors[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            raise SAEFileError(
                f"{path}: {name}: {theirs.dtype} {tuple(theirs.shape)}, expected {ours.dtype} {tuple(ours.shape)}"
            )
        never_calibrated = name == "threshold" and theirs.ndim == 0 and bool(theirs.isnan())
        if not never_calibrated and not theirs.isfinite().all():
            raise SAEFileError(f"{path}: {name}: holds NaN or infinity")
    return tensors


def _empty(about: dict[str, Any], path: Path) -> SAE:
    d_in = about.get("d_in")
    if not isinstance(d_in, int) or d_in < 1:
        raise SAEFileError(f"{path}: d_in: {d_in!r}, expected a whole number above 0")
    try:
        config = _CONFIG.validate_python(about.get("config"))
        return SAE_TYPES[config.type](config, d_in)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(["config", *map(str, first["loc"])])
        raise SAEFileError(f"{path}: {place}: {first['msg']}") from error
    except (TypeError, ValueError, RuntimeError) as error:  # from torch for impossible sizes, or from the architecture
        raise SAEFileError(f"{path}: config: {str(error).splitlines()[0]}") from error


def _version() -> str:
    try:
        return version("saebench")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
