"""The site builds without a warning, and says something about every type."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from saebench.config import SAE_CONFIGS


@pytest.mark.slow
def test_the_site_builds_without_a_warning(repository: Path, tmp_path: Path) -> None:
    """Links, anchors, pages without a place in the navigation, names in the API page."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (extra [dev])")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (extra [dev])")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    ran = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "run_sweep" in (tmp_path / "site" / "api.html").read_text("utf-8")


def test_every_type_has_its_loss_written_out(repository: Path) -> None:
    page = (repository / "docs" / "losses.md").read_text("utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, flags=re.M | re.S))
    assert sections.keys() == SAE_CONFIGS.keys()
    assert [name for name, text in sections.items() if not re.search(r"^loss +=", text, flags=re.M)] == []
