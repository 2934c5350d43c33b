"""Files that become artifacts of a run: by name, never through a link, without secrets."""

from __future__ import annotations

import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from saebench.runs.paths import SAE_CONFIG, SAE_WEIGHTS
from saebench.runs.secrets import mask

SAE_FILES = (SAE_WEIGHTS, SAE_CONFIG)
"""The only files copied from an SAE's folder: a killed worker may have left temporary files there."""
_TEXT = (".json", ".yaml", ".txt", ".log")


class Artifacts(Protocol):
    """Stores a run's files (MLflow's `ArtifactRepository`)."""

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None: ...
    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None: ...


def is_plain(path: Path) -> bool:
    """Return whether `path` itself is a regular file: no link, folder, pipe or device."""
    with suppress(OSError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def sae_files(folder: Path) -> list[Path]:
    """Return the files of the SAE in `folder`; none if the folder is a link or a file is missing or not plain."""
    files = [folder / name for name in SAE_FILES]
    return files if not folder.is_symlink() and all(map(is_plain, files)) else []


def log_files(to: Artifacts, *paths: Path) -> None:
    """Copy those of these files that exist to the root of a run's artifacts, secrets in text files masked."""
    for path in filter(is_plain, paths):
        if path.suffix in _TEXT and mask(text := path.read_text("utf-8", "replace")) != text:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / path.name
                copy.write_text(mask(text), "utf-8")
                to.log_artifact(str(copy))
        else:
            to.log_artifact(str(path))


def log_sae(to: Artifacts, folder: Path) -> bool:
    """Copy the SAE in `folder` to the folder `sae` of a run's artifacts; return False if `folder` has no SAE."""
    files = sae_files(folder)
    for file in files:
        to.log_artifact(str(file), "sae")
    return bool(files)
