"""Print constraints for pip that hold every dependency of pyproject.toml at its lower bound.

torch is left out: the job uses the lock's. The versions of torch that were tried stand in CHANGELOG.md.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
LEFT_OUT = {"torch"}


def lowest(requirement: str) -> str | None:
    """`name==bound` for `name>=bound`, else None."""
    found = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", requirement)
    return f"{found[1]}=={found[2]}" if found and found[1] not in LEFT_OUT else None


def constraints() -> list[str]:
    """One line per dependency, those of the extras that the tests use included."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return [line for need in (*project["dependencies"], *extras["cmaes"], *extras["demo"]) if (line := lowest(need))]


if __name__ == "__main__":
    print(*constraints(), sep="\n")
