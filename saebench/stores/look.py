"""Inspect a dataset of local files before a sweep: rows, texts and rows left out, parts, a first text.

`look` runs `python -m saebench.stores.look` (`datasets` would otherwise import torch into the caller), which reads the
rows as a sweep does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from saebench import telemetry
from saebench.config import FILE_FORMATS, DataConfig
from saebench.errors import DataError
from saebench.python_path import python_path
from saebench.stores.dataset import stream
from saebench.stores.texts import Counts, Division, select

ENVIRONMENT = {"USE_TORCH": "0", "USE_TF": "0", "USE_JAX": "0"}
"""Keeps `datasets` from importing frameworks."""
SECONDS = 20.0
"""Time limit in seconds; after it, the results so far are reported as partial."""
SOME = 32
"""Number of texts that are returned."""
LABELS = 50
"""Different labels that are counted."""


@dataclass(frozen=True)
class Look:
    """The content of a dataset."""

    counts: dict[str, int]
    """Rows read, texts kept, duplicates, empty, non_string."""
    parts: dict[str, int]
    """Texts for training, validation and test."""
    first: str
    first_label: Any = None
    labels: int = 0
    """Different labels, at most LABELS."""
    some: list[str] = field(default_factory=list)
    """A sample of texts, to time the encoding."""
    whole: bool = True
    """Whether everything that the sweep would read was read."""


def is_local(data: DataConfig) -> bool:
    """Whether the texts are in files on this machine."""
    dataset = data.dataset
    if dataset.path not in FILE_FORMATS:
        return os.path.isdir(os.path.expanduser(dataset.path))
    files: Any = dataset.data_files or ()
    names = [files] if isinstance(files, str) else files
    return not any("://" in str(name) and not str(name).startswith("file://") for name in names)


def look(data: DataConfig) -> Look:
    """Read the dataset up to `num_examples` texts. Raises DataError as the sweep would: no file, no such column, no
    text."""
    ran = subprocess.run(
        [sys.executable, "-m", "saebench.stores.look"],
        input=data.model_dump_json(),
        capture_output=True,
        text=True,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": python_path()},
    )
    if ran.returncode:
        last = (ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"])[-1]
        raise DataError(f"the texts could not be read: {last}")
    found = json.loads(ran.stdout.splitlines()[-1])
    if "error" in found:
        raise DataError(found["error"])
    return Look(**found)


def read(data: DataConfig, seconds: float = SECONDS) -> Look:
    """Return the result of `look`; runs in the child."""
    counts, parts, labels = Counts(), Counter[str](), set[str]()
    division = Division(data.parts.validation, data.parts.test)
    first, first_label, whole = "", None, True
    some: list[str] = []
    end = time.monotonic() + seconds
    for text in select(stream(data.dataset), counts, data.num_examples, how=data.clean):
        if counts.kept == 1:
            first, first_label = text.text, text.label
        if len(some) < SOME and counts.kept % max(1, data.num_examples // (4 * SOME)) == 0:
            some.append(text.text)
        parts[division.part(text.hash)] += 1
        if len(labels) < LABELS and text.label is not None:
            labels.add(json.dumps(text.label, default=str))
        if time.monotonic() > end:
            whole = False
            break
    return Look(counts.to_dict(), dict(parts), first[:500], first_label, len(labels), some, whole)


if __name__ == "__main__":
    telemetry.disable()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        result: dict[str, Any] = asdict(read(DataConfig.model_validate_json(sys.stdin.read())))
    except DataError as error:
        result = {"error": str(error)}
    answer.write(json.dumps(result, default=str) + "\n")
    answer.flush()
    os._exit(0)  # without waiting for threads of libraries that still hold a stream
