"""PYTHONPATH of child processes."""

from __future__ import annotations

import os
from pathlib import Path


def python_path() -> str:
    """Return a PYTHONPATH with which a new interpreter imports this saebench, followed by the current one's entries."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
