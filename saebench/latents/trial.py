"""A trained SAE with its config, and its codes of a part of the corpus, which are encoded once and stored in its
folder."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from saebench.config import TrialConfig
from saebench.errors import UserError
from saebench.latents.codes import Chunk, Codes, chunk_of, write_codes
from saebench.latents.corpus import Floats, Part
from saebench.latents.ends import Ends
from saebench.runs.paths import SAE_CONFIG, SAE_WEIGHTS, TRIAL_CONFIG, TrialPaths
from saebench.runs.state import trial_config

if TYPE_CHECKING:
    from saebench.saes import SAE

CELLS = 1 << 23
"""Pre-activations that are computed together (32 MiB)."""
ROWS_PER_PIECE = 16_384
"""Rows between two states that a stopped writer resumes from."""


@dataclass(frozen=True, eq=False)
class TrainedSAE:
    """A trial's SAE: from trials/NNNN/, or from the folder that `saebench export` has written."""

    name: str
    folder: Path
    weights: Path
    """Folder of sae.safetensors and sae.json."""
    config: TrialConfig
    paths: TrialPaths | None
    """The trial's directory; None for an exported folder."""

    @cached_property
    def sae(self) -> SAE:
        from saebench.saes import load_sae

        return load_sae(self.weights)

    @cached_property
    def digest(self) -> str:
        """Identifies the SAE: a digest of both files."""
        found = hashlib.sha256()
        for name in (SAE_WEIGHTS, SAE_CONFIG):
            found.update((self.weights / name).read_bytes())
        return found.hexdigest()[:16]

    @cached_property
    def decoder(self) -> Floats:
        """(dict_size, d_in) decoder rows."""
        return np.asarray(self.sae.W_dec.detach().cpu().numpy(), np.float32)

    @property
    def ends(self) -> Ends:
        """The numbering of its latents' ends."""
        return Ends(len(self.decoder), self.config.sae.signed)

    def live_decoder(self) -> Floats:
        """Return decoder rows of the latents that fired in the trial's evaluation; all rows if that file is missing."""
        from safetensors import SafetensorError, safe_open

        if self.paths is not None and self.paths.evaluation.is_file():
            try:
                with safe_open(self.paths.evaluation, framework="numpy") as file:
                    firing = np.asarray(file.get_tensor("firing"))
            except (SafetensorError, OSError):
                return self.decoder
            if len(firing) == len(self.decoder):
                return self.decoder[firing > 0]
        return self.decoder

    def codes(self, part: Part, progress: Callable[[int], None] = lambda _: None) -> Codes:
        """The codes of every row of the part: read from the folder `codes`, or encoded now and stored there."""
        about = {"sae": self.digest, "part": part.name, "texts": part.key, "embeddings": part.entry.cache_key}
        folder = self.folder / "codes" / f"{part.name}-{self.digest}-{part.key}"

        def piece(start: int, stop: int) -> Chunk:
            return encode_rows(self.sae, part.embeddings(start, stop))

        return write_codes(folder, about, len(part), self.sae.dict_size, piece, ROWS_PER_PIECE, progress)


def encode_rows(sae: SAE, rows: Floats) -> Chunk:
    """Return the non-zero entries of `sae.encode(rows)`, computed for `rows_at_a_time` rows at a time."""
    import torch

    size, parts = rows_at_a_time(sae.dict_size), []
    with torch.no_grad():
        for start in range(0, len(rows), size):
            some = torch.from_numpy(rows[start : start + size]).to(sae.W_dec.device)
            parts.append(chunk_of(sae.encode(some).cpu().numpy()))
    values, latents, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    return values, latents, counts


def rows_at_a_time(dict_size: int) -> int:
    """A power of two, so that pieces end where batches do."""
    return int(min(ROWS_PER_PIECE, 1 << max(0, (CELLS // dict_size).bit_length() - 1)))


def open_trial(folder: Path, name: str = "") -> TrainedSAE:
    """The SAE in a trial's directory or in an exported folder. Raises UserError that says which file is missing."""
    folder = folder.absolute()
    trial = (folder / TRIAL_CONFIG).is_file()
    weights = folder / "sae" if trial else folder
    parsed = trial_config(folder)
    if not (weights / SAE_WEIGHTS).is_file():
        raise UserError(f"{weights}: no {SAE_WEIGHTS}: the trial has not ended, or its weights were deleted")
    return TrainedSAE(
        name or f"{parsed.sweep}/{parsed.number}", folder, weights, parsed, TrialPaths(folder) if trial else None
    )


def siblings(trial: TrainedSAE) -> list[TrainedSAE]:
    """Return the other seeds of the same point in the same sweep whose SAEs exist, by seed."""
    if trial.paths is None:
        return []
    found = []
    for folder in sorted(trial.folder.parent.iterdir()):
        if not re.fullmatch(r"\d+", folder.name) or folder == trial.folder:
            continue
        try:
            other = open_trial(folder)
        except UserError:
            continue
        if other.config.point == trial.config.point and other.config.seed != trial.config.seed:
            found.append(other)
    return sorted(found, key=lambda other: other.config.seed)
