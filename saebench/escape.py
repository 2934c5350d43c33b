"""Escape control characters in text from outside: run files, host names, data, descriptions."""

from __future__ import annotations

import re

CONTROLS = r"\x00-\x08\x0b-\x0d\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
"""For a character class of a regular expression: C0 without tab and line feed, DEL, C1, and what changes the direction
of text or ends a line in some viewers only."""
_CONTROL = re.compile(f"[{CONTROLS}]")


def escape_controls(text: str) -> str:
    """Return `text` with each control character as its escape, such as \\x1b or \\u202e; tabs and line feeds stay."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
