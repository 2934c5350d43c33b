"""Open a page in the user's browser, where there is one to see it."""

from __future__ import annotations

import os
import sys
import webbrowser


def can_open() -> bool:
    """Whether a browser would show up in front of the user: a screen, and no text browser in this terminal."""
    if os.environ.get("BROWSER") or sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(address: str) -> bool:
    """Open `address`; whether that was possible."""
    return can_open() and webbrowser.open(address)
