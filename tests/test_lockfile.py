"""requirements.lock against pyproject.toml: what CI installs is what the tests ask for."""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OF_A_BUILD = ("nvidia-", "cuda-", "triton")
"""torch's builds for CUDA pin their libraries themselves; the lock is of every build."""


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    wanted = [Requirement(line) for line in lines]
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in wanted}


def test_everything_that_pyproject_asks_for_is_pinned_within_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = pins()
    asked = [Requirement(one) for one in (*project["dependencies"], *project["optional-dependencies"]["dev"])]
    assert [str(one) for one in asked if not _held(one, locked)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="the lock is of Linux")
def test_what_pinned_packages_need_is_pinned_too() -> None:
    locked = pins()
    lacking = set()
    for name in locked:
        try:
            here = version(name).partition("+")[0] == locked[name]  # of another version the lock says nothing
            needs = [Requirement(text) for text in requires(name) or ()] if here else []
        except PackageNotFoundError:  # not of this machine: its marker says so, or the environment is not the lock's
            continue
        needs = [one for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
        needs = [one for one in needs if name != "torch" or not one.name.startswith(OF_A_BUILD)]
        lacking |= {f"{name} needs {one}" for one in needs if not _held(one, locked)}
    assert lacking == set()


def _held(need: Requirement, locked: dict[str, str]) -> bool:
    name = canonicalize_name(need.name)
    return name == "setuptools" or (name in locked and need.specifier.contains(locked[name], prereleases=True))
