"""Provide the embeddings of a sweep before its first trial."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import PreflightError
from saebench.hub import embedding_width
from saebench.runs import corpus
from saebench.runs.lock import Lock
from saebench.runs.paths import SweepPaths
from saebench.runs.preparing import Preparing, PreparingFile
from saebench.spec import SweepSpec
from saebench.terminal.views import View

if TYPE_CHECKING:
    from saebench.executors import Executor
    from saebench.stores.child_process import Launch
    from saebench.stores.entry import CacheEntry


class StoppedError(Exception):
    """`saebench stop` was used before the scheduler existed."""


class Embeddings:
    """Builds the entries of the cache that a sweep needs, and keeps them in use, so that no `cache gc` removes them."""

    def __init__(self, spec: SweepSpec, paths: SweepPaths, cache: Path, view: View, circular_anyway: bool) -> None:
        self._spec, self._paths, self._cache, self._view = spec, paths, cache, view
        self._circular_anyway, self._file = circular_anyway, PreparingFile(paths)

    def prepare(self, executor: Executor, lock: Lock | None) -> dict[str, Any]:
        """Return the lock's fields about the embeddings, once all exist. Raises PreflightError if they differ from the
        first start's."""
        try:
            return self._prepare(executor, lock)
        finally:
            self._file.remove()

    def _prepare(self, executor: Executor, lock: Lock | None) -> dict[str, Any]:
        data = self._spec.data
        if not data.cache:
            width = embedding_width(data.model, data.revision)
            if width is None:
                raise PreflightError(
                    f"data.model: {data.model}: its width is not known without loading it; set data.cache: on"
                )
            return {"d_in": width}
        from saebench.stores import cache

        devices, key = executor.encoders(), cache.entry_folder(data, self._cache).name
        if lock is not None and lock.cache_key not in (None, key):
            other = f"other content of {data.embeddings}" if data.embeddings else "other texts or another model"
            raise PreflightError(
                f"{self._paths.root}: started with {other}: embeddings {lock.cache_key}, now they are {key}; undo the "
                "change, or give the sweep another name"
            )
        entry = cache.build(data, self._cache, devices, self._encoding, self._copies)
        self._entry = entry  # kept: gc leaves it alone
        parts = {"num_train": entry.num_train, "num_validation": entry.num_validation, "num_test": entry.num_test}
        entry.check(data)
        self._view.note(
            f"embeddings: {entry.num_train:,} to train on, {entry.num_validation:,} for validation, "
            f"{entry.num_test:,} for test, d_in {entry.d_in}"
        )
        if data.embeddings is not None and entry.manifest.sources:
            self._view.note(f"rows are read from {data.embeddings}, not copied: leave it unchanged")
        for sentence in corpus.sentences(entry.info):
            self._view.note(sentence)
        counts = {"d_in": entry.d_in, **parts}
        second = self._second_key(entry, lock, devices)
        return {**counts, "cache_key": entry.cache_key, "second_key": second, "data": entry.info}

    def _second_key(self, entry: CacheEntry, lock: Lock | None, devices: Sequence[str | Launch]) -> str | None:
        """Return the key of the embeddings by `eval.second_encoder`, once they exist. Raises CircularError at the first
        start if they are those of `data.model`, PreflightError if they differ from the first start's."""
        model = self._spec.eval.second_encoder
        if model is None:
            return None
        from saebench.latents.second import CircularError, check_second, second_data
        from saebench.stores import cache

        where, unchecked = f"eval.second_encoder: {model}", self._circular_anyway or lock is not None
        if model == self._spec.data.model and not unchecked:
            raise CircularError(where)
        self._second = second = cache.build(
            second_data(self._spec.data, model), self._cache, devices, self._encoding, self._copies
        )
        if lock is not None and lock.second_key not in (None, second.cache_key):
            raise PreflightError(
                f"{self._paths.root}: {where}: started with embeddings {lock.second_key}, now they are "
                f"{second.cache_key}; undo the change, or give the sweep another name"
            )
        if not unchecked:
            check_second(entry, second, where)
        return second.cache_key

    @property
    def _copies(self) -> bool:
        """Whether entries must hold all rows: machines of a cluster may not see the user's files."""
        return self._spec.run.executor == "ray"

    def _encoding(self, progress: Any) -> None:
        if self._paths.stop.exists():
            raise StoppedError
        if progress.warning:
            self._view.note(progress.message)
        else:
            self._view.encoding(progress)
            self._file.write(Preparing(progress.stage, progress.done, progress.total, progress.rate, progress.message))
