"""Open a page in the user's browser, if there is a screen."""

from __future__ import annotations

import os
import sys
import webbrowser


def can_open() -> bool:
    """Return whether the user would see a browser: there is a screen, and no text browser in this terminal."""
    if os.environ.get("BROWSER") or sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_page(address: str) -> bool:
    """Open `address`; return whether a browser was found."""
    return can_open() and webbrowser.open(address)
