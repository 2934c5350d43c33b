"""The one owner of file names: a sweep's directory and the directories of its trials."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from saebench.errors import PreflightError
from saebench.runs.durable import remove_temporary

TRIAL_CONFIG = "config.json"
SAE_CONFIG, SAE_WEIGHTS = "sae.json", "sae.safetensors"
EVALUATION = "evaluation.safetensors"
LOCK, HOLDER = "lock.json", "scheduler.json"
FLOORS = "floors.json"
EXPORTED_CONFIG = "trial.json"
"""The trial's config beside an exported SAE."""
CHECKPOINT_STATE = "state.json"
"""The JSON of a checkpoint, written last."""
_NUMBER = re.compile(r"[0-9]{4,9}")
"""Names of trials' directories; not `str.isdigit`, which takes ² for a digit."""


@dataclass(frozen=True)
class TrialPaths:
    """`trials/NNNN/`: only the trial's worker writes here, except two files, which say so."""

    root: Path

    @property
    def number(self) -> int:
        """The trial's number."""
        return int(self.root.name)

    @property
    def config(self) -> Path:
        """The immutable `TrialConfig` as JSON; written by the scheduler before the first attempt."""
        return self.root / TRIAL_CONFIG

    @property
    def state(self) -> Path:
        """State, reason, attempts, verdict; written by the scheduler."""
        return self.root / "state.json"

    @property
    def events(self) -> Path:
        """The durable record of the trial (see events.py)."""
        return self.root / "events.jsonl"

    @property
    def fence(self) -> Path:
        """On a cluster, the number of the newest attempt: an older one that still runs somewhere stops at once."""
        return self.root / "attempt"

    @property
    def log(self) -> Path:
        """stdout and stderr of every attempt."""
        return self.root / "log.txt"

    @property
    def checkpoint(self) -> Path:
        """Folder of checkpoints."""
        return self.root / "checkpoint"

    @property
    def sae(self) -> Path:
        """Folder of the finished SAE: sae.safetensors and sae.json."""
        return self.root / "sae"

    @property
    def evaluation(self) -> Path:
        """Per hold-out example and per latent, from the last evaluation: squared_error (N, float32, original space),
        l0 (N, int32), firing (dict_size, int64: examples on which the latent fired); safetensors."""
        return self.root / EVALUATION


@dataclass(frozen=True)
class SweepPaths:
    """`runs/<name>/`."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        """The spec as the user wrote it."""
        return self.root / "spec.yaml"

    @property
    def lock(self) -> Path:
        """The resolved spec, d_in, revisions, versions, git commit, tracking URI and run id, as JSON."""
        return self.root / LOCK

    @property
    def holder_lock(self) -> Path:
        """filelock that the scheduler holds while it lives."""
        return self.root / "scheduler.lock"

    @property
    def holder(self) -> Path:
        """Who holds it: pid, host, start time."""
        return self.root / HOLDER

    @property
    def preparing(self) -> Path:
        """How far the embeddings are, for as long as they are read and encoded."""
        return self.root / "preparing.json"

    @property
    def journal(self) -> Path:
        """Optuna's journal."""
        return self.root / "optuna.journal"

    @property
    def tracking(self) -> Path:
        """What the tracker has sent: parent run id, and per trial its run id and offset."""
        return self.root / "tracking.json"

    @property
    def log(self) -> Path:
        """The scheduler's own log."""
        return self.root / "scheduler.log"

    @property
    def stop(self) -> Path:
        """Exists if another terminal asked the scheduler to stop; its text says how."""
        return self.root / "stop"

    @property
    def retry(self) -> Path:
        """Exists if another terminal asked to retry trials; a JSON list of their numbers."""
        return self.root / "retry.json"

    @property
    def cluster(self) -> Path:
        """The name of the sweep's scratch folders on the nodes of a cluster, as JSON."""
        return self.root / "cluster.json"

    @property
    def floors(self) -> Path:
        """Scores without training on the same texts, measured by trial/floors.py."""
        return self.root / FLOORS

    @property
    def report(self) -> Path:
        """Folder in which `saebench report` writes by default."""
        return self.root / "report"

    @property
    def stability(self) -> Path:
        """Similarities of the dictionaries of two seeds that `saebench report` has measured so far."""
        return self.report / "stability.json"

    def trial(self, number: int) -> TrialPaths:
        """The directory of trial `number`."""
        return TrialPaths(self.root / "trials" / f"{number:04d}")

    def trials(self) -> list[TrialPaths]:
        """Directories of the trials that exist, in order of number."""
        folder = self.root / "trials"
        there = [p for p in folder.iterdir() if _NUMBER.fullmatch(p.name)] if folder.is_dir() else []
        return [TrialPaths(p) for p in sorted(there, key=lambda p: int(p.name))]

    def remove_left_overs(self) -> None:
        """Delete temporary files of killed writers; no writer may be alive."""
        for folder in (self.root, *(place for trial in self.trials() for place in (trial.root, trial.sae))):
            remove_temporary(folder)


def runs_dir(given: str | Path | None = None) -> Path:
    """Return the directory of the sweeps: the argument, else SAEBENCH_RUNS, else ./runs."""
    return Path(given or os.environ.get("SAEBENCH_RUNS") or "runs").absolute()


def cache_dir(given: str | Path | None = None) -> Path:
    """Return the directory of the embedding cache: the argument, else SAEBENCH_CACHE, else saebench/ in the user's
    cache folder. Raises PreflightError if the user has no home directory and neither is set."""
    if chosen := given or os.environ.get("SAEBENCH_CACHE"):
        return Path(chosen).absolute()
    try:
        return (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "saebench").absolute()
    except RuntimeError:
        raise PreflightError("embedding cache: no home directory; set SAEBENCH_CACHE or give --cache-dir") from None


def embeddings_dir(cache: Path) -> Path:
    """The folder of the cache's entries, one folder each, named by its cache key."""
    return cache / "embeddings"
