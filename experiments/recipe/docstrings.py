"""Sentences of docstrings: the first paragraph of every module, class and function of Python's standard library and of
the installed packages, as a corpus for corpora.py.

python docstrings.py docstrings.parquet --count 20000
"""

from __future__ import annotations

import argparse
import ast
import random
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

_FEWEST_WORDS, _MOST_LETTERS = 4, 300


def sentences(folder: Path) -> Iterator[tuple[str, str]]:
    """Pairs (first paragraph, package) of the docstrings in the Python files below a folder."""
    for path in sorted(folder.rglob("*.py")):
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError, RecursionError):
            continue
        package = path.relative_to(folder).parts[0].removesuffix(".py")
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                first = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if len(first.split()) >= _FEWEST_WORDS and len(first) <= _MOST_LETTERS:
                    yield first, package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    sys.setrecursionlimit(10_000)
    paths = sysconfig.get_paths()
    found = {text: package for place in ("stdlib", "purelib") for text, package in sentences(Path(paths[place]))}
    some = random.Random(0).sample(sorted(found), min(options.count, len(found)))
    pd.DataFrame({"text": some, "label": [found[text] for text in some]}).to_parquet(options.out)
    print(f"{len(some):,} of {len(found):,} texts: {options.out}")


if __name__ == "__main__":
    main()
