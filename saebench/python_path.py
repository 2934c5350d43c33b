"""The modules that a child process finds."""

from __future__ import annotations

import os
from pathlib import Path


def python_path() -> str:
    """Return the PYTHONPATH with which a fresh interpreter imports this saebench, then what this one's has."""
    return os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
