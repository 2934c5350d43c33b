"""A real headless browser, for tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]  # fmt: skip
PATIENCE = 60_000
"""Milliseconds to wait for something to appear; a page of MLflow took 2 to 10 s on two cores with a load of 14."""


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium or Chrome as the machine has it, else the one that `playwright install chromium` brought. Without
    either, or without the package, the test is skipped."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra [dev])")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    with driver.sync_playwright() as running:
        if found is None and not Path(running.chromium.executable_path).exists():
            pytest.skip("no Chromium here (Debian: apt-get install chromium; else: playwright install chromium)")
        opened = running.chromium.launch(executable_path=found, args=FLAGS)
        yield opened
        opened.close()
