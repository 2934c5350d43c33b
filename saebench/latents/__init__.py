"""What the latents of a trained SAE mean: codes kept on disk, keywords, families, scores, one page. No LLM, no API."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saebench.latents.analysis import Latents as Latents
    from saebench.latents.analysis import analyse as analyse
    from saebench.latents.codes import Codes as Codes
    from saebench.latents.encode import Encoder as Encoder

_HOME = {"Codes": "codes", "Encoder": "encode", "Latents": "analysis", "analyse": "analysis"}
"""Public name -> its module."""

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"saebench.latents.{_HOME[name]}"), name)
    raise AttributeError(f"module 'saebench.latents' has no attribute {name!r}")
