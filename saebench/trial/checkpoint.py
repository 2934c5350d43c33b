"""Checkpoints of a trial: named after the examples seen, written atomically, the newest two kept.

A checkpoint is a folder with tensors.safetensors and state.json, which holds the checksum of the tensors and its own.
It is written under a temporary name, synced, then renamed. `load` removes a damaged one and falls back to the one
before it.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from saebench.runs.durable import new_folder, remove_temporary
from saebench.runs.paths import CHECKPOINT_STATE

KEPT = 2
"""Number of checkpoints kept; the older one is used if the newest is damaged."""

State = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors on the CPU, and everything else as JSON."""


def save(folder: Path, samples: int, state: State) -> Path:
    """Write the checkpoint of `samples`, synced, and remove all but the newest two; return its folder.

    If a checkpoint of `samples` exists already, it holds the same state and is kept.
    """
    tensors, values = state
    place = folder / f"{samples:012d}"
    if place.exists():
        return place
    with new_folder(place) as new:
        save_file(tensors, new / "tensors.safetensors")
        state_json = json.dumps(values)
        seal = {
            "tensors": _checksum((new / "tensors.safetensors").read_bytes()),
            "values": _checksum(state_json.encode()),
        }
        (new / CHECKPOINT_STATE).write_text(json.dumps({"checksums": seal, "values": state_json}), encoding="utf-8")
    for old in _newest_first(folder)[KEPT:]:
        shutil.rmtree(old)
    remove_temporary(folder)
    return place


def load(folder: Path, usable: Callable[[dict[str, Any]], bool] = lambda _: True) -> tuple[State, Path] | None:
    """Return the newest checkpoint that is undamaged and whose JSON is `usable`, and its folder; remove newer ones,
    with a warning each."""
    for place in _newest_first(folder):
        try:
            state = _read(place)
            if not usable(state[1]):
                raise ValueError("events.jsonl ends before this checkpoint")
            return state, place
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            print(f"warning: checkpoint {place.name} is skipped: {error}", file=sys.stderr, flush=True)
            shutil.rmtree(place)
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if path.name.isdigit()] if folder.is_dir() else []
    return sorted(found, reverse=True)


def _read(place: Path) -> State:
    written = json.loads((place / CHECKPOINT_STATE).read_text(encoding="utf-8"))
    seal, values = written["checksums"], written["values"]
    if _checksum(values.encode()) != seal["values"]:
        raise ValueError("state.json: checksum differs")
    if _checksum((place / "tensors.safetensors").read_bytes()) != seal["tensors"]:
        raise ValueError("tensors.safetensors: checksum differs")
    return load_file(place / "tensors.safetensors"), json.loads(values)


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- global random numbers --------------------------------------------------------------------------------------------


def seed_generators(seed: int) -> None:
    """Seed the global generators of torch, numpy and Python: saebench does not draw from them, but libraries may."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def generator_state(device: torch.device) -> State:
    """Return the states of the global generators."""
    tensors = {"rng.torch": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(device)
    name, keys, *rest = np.random.get_state(legacy=True)
    return tensors, {"python": random.getstate(), "numpy": [name, np.asarray(keys).tolist(), *rest]}


def restore_generators(tensors: dict[str, Tensor], values: dict[str, Any], device: torch.device) -> None:
    """Restore the global generators to a state from `generator_state`."""
    torch.set_rng_state(tensors["rng.torch"])
    if device.type == "cuda" and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"], device)
    version, keys, gauss = values["python"]
    random.setstate((version, tuple(keys), gauss))
    name, numbers, *rest = values["numpy"]
    np.random.set_state((name, np.asarray(numbers, dtype=np.uint32), *rest))
