"""Texts of a corpus as they may be shown: a corpus may hold anything."""

from __future__ import annotations

import unicodedata

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of what follows them."""


def visible(text: str, characters: int = 0) -> str:
    """One line without control characters (an escape sequence would steer the terminal) or lone surrogates, each
    replaced by U+FFFD; at most so many characters, the last one an ellipsis where something was cut (0: all)."""
    if characters and len(text) > characters:
        text = text[: characters - 1] + "…"
    return "".join(" " if c in "\t\n\r" else "\ufffd" if _hidden(c) else c for c in text)


def _hidden(character: str) -> bool:
    return character in _BIDI or unicodedata.category(character) in ("Cc", "Cs")
