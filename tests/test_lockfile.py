"""requirements.lock against pyproject.toml: what CI installs is what the tests ask for."""

from __future__ import annotations

import runpy
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
    """Read from the packages as they are installed here, so that it needs the lock's own environment."""
    locked = pins()
    if others := sorted(name for name, pin in locked.items() if _installed(name) != pin):
        pytest.skip(
            f"this environment is not the lock's: {len(others)} of {len(locked)} differ: {', '.join(others[:9])}"
        )
    assert _lacking({name: requires(name) or [] for name in locked}, locked) == set()


def test_what_is_not_pinned_is_found() -> None:
    locked = {"a": "1.0", "b": "2.0", "torch": "2.13.0"}
    needs = {
        "a": ["b>=1", "c", "d; extra == 'x'", "e; sys_platform == 'nowhere'"],
        "b": ["a>=2", "setuptools"],
        "torch": ["nvidia-x", "triton==3", "f"],
    }
    assert _lacking(needs, locked) == {"a needs c", "b needs a>=2", "torch needs f"}


def test_the_job_of_lower_bounds_knows_one_of_every_dependency() -> None:
    lowest = runpy.run_path(str(ROOT / ".ci" / "lowest_bounds.py"))["constraints"]()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [Requirement(one) for one in project["dependencies"]]
    held = {Requirement(line).name: Requirement(line).specifier for line in lowest}
    assert {one.name for one in asked} - {"torch"} <= held.keys()
    for one in asked:
        if one.name != "torch":
            (pin,) = held[one.name]
            assert pin.operator == "=="
            assert one.specifier.contains(pin.version), one


def _installed(name: str) -> str | None:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def _lacking(needs: dict[str, list[str]], locked: dict[str, str]) -> set[str]:
    """What packages need on this machine and no pin holds."""
    found = set()
    for name, texts in needs.items():
        for one in map(Requirement, texts):
            here = one.marker is None or one.marker.evaluate({"extra": ""})
            of_a_build = name == "torch" and one.name.startswith(OF_A_BUILD)
            if here and not of_a_build and not _held(one, locked):
                found.add(f"{name} needs {one}")
    return found


def _held(need: Requirement, locked: dict[str, str]) -> bool:
    name = canonicalize_name(need.name)
    return name == "setuptools" or (name in locked and need.specifier.contains(locked[name], prereleases=True))
