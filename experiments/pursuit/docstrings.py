"""Write a corpus of sentences from the docstrings of installed packages, their package as label.

python experiments/pursuit/docstrings.py docs.parquet [--count 20000]
"""

from __future__ import annotations

import argparse
import ast
import random
import re
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PACKAGES = ("matplotlib", "mlflow", "networkx", "numpy", "optuna", "pandas", "pyarrow", "ray", "scipy", "skops",
            "sklearn", "sqlalchemy", "sympy", "torch", "transformers")  # fmt: skip
_MARKUP = re.compile(r"[`*]|:\w+:")


def docstrings(package: str) -> Iterator[str]:
    found = find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in sorted(Path(folder).rglob("*.py")):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    tree = ast.parse(file.read_text("utf-8"))
            except (SyntaxError, UnicodeDecodeError):
                continue
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                    yield ast.get_docstring(node) or ""


def sentences(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        if ">>>" in paragraph or "---" in paragraph:
            continue
        for one in re.split(r"(?<=[.!?])\s+", " ".join(_MARKUP.sub("", paragraph).split())):
            if 5 <= len(one.split()) <= 40 and one[-1] in ".!?":
                yield one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    args = parser.parse_args()
    found = {one: name for name in PACKAGES for text in docstrings(name) for one in sentences(text)}
    texts = random.Random(0).sample(sorted(found), args.count)
    pq.write_table(pa.table({"text": texts, "label": [found[text] for text in texts]}), args.out)


if __name__ == "__main__":
    main()
