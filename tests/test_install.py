"""What an installed copy is: the package, wherever a script lies that imports it."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, entry_points
from pathlib import Path

import pytest


def test_a_script_beside_the_clone_imports_the_package_and_not_the_clone_s_folder(tmp_path: Path) -> None:
    """The clone is a folder saebench that holds a package saebench: for a script beside it the outer one is an empty
    namespace package, unless the installed package is found by sys.path."""
    try:
        import importlib.metadata

        importlib.metadata.version("saebench")
    except PackageNotFoundError:
        pytest.skip("saebench is not installed here")
    (tmp_path / "saebench" / "saebench").mkdir(parents=True)
    (tmp_path / "script.py").write_text("import saebench; print(saebench.__version__)")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == importlib.metadata.version("saebench")


def test_editable_installs_are_path_files(repository: Path) -> None:
    """setuptools writes a path file, and no import hook, if all packages lie in one named folder."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-dir"] == {"": "."}


def test_there_is_a_command_to_type(repository: Path) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"saebench": "saebench.cli:main"}
    (command,) = [point for point in entry_points(group="console_scripts") if point.name == "saebench"] or [None]
    if command is None:
        pytest.skip("saebench is not installed here")
    from saebench.cli import main

    assert command.load() is main
