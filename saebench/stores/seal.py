"""JSON with a checksum of itself inside: a manifest holds the checksums of other files, and no file holds its own."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_KEY = "check"


def seal(content: dict[str, Any]) -> str:
    """The JSON of `content` with the checksum of it inside."""
    return json.dumps({**content, _KEY: _digest(content)}, indent=1) + "\n"


def unseal(text: bytes) -> dict[str, Any]:
    """What was sealed, or JSON that never was. Raises ValueError where it is not what it was."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if _KEY in content and content.pop(_KEY) != _digest(content):
        raise ValueError("its content has another checksum")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
