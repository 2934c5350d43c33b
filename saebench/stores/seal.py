"""JSON that contains its own checksum: a manifest has the checksums of other files, but no other file has the
manifest's."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_KEY = "check"


def seal(content: dict[str, Any]) -> str:
    """Return the JSON of `content` with its checksum inside."""
    return json.dumps({**content, _KEY: _digest(content)}, indent=1) + "\n"


def unseal(text: bytes) -> dict[str, Any]:
    """Return the content of sealed JSON, or of JSON without a checksum. Raises ValueError if the checksum is wrong."""
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("not a JSON object")
    if _KEY in content and content.pop(_KEY) != _digest(content):
        raise ValueError("its content has another checksum")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
