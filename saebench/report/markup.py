"""Text from outside as HTML."""

from __future__ import annotations

from html import escape

from saebench.escape import escape_controls


def text(value: str) -> str:
    """The text with markup and control characters escaped."""
    return escape(escape_controls(value))
