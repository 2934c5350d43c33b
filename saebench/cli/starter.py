"""Write a spec for a data file: columns, budget, k and widths that fit it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.stores.sniff import Found

MODEL = "sentence-transformers/all-MiniLM-L6-v2"
OTHER_LANGUAGES = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
WIDTHS = (48, 96, 192, 384, 768, 1536, 3072)
TEXTS_PER_LATENT = 10
"""With fewer texts per latent, latents memorise single texts."""
MOST_TEXTS = 200_000
PROBED = "eval: {metrics: [knn_overlap_at_10, probing]}  # probing reads the labels off single latents"
SMALL = 10_000
"""With fewer texts a larger share is held out: a verdict on 200 texts is too uncertain."""


@dataclass(frozen=True)
class Sizes:
    """Settings that fit a number of training texts."""

    dict_size: int
    k: tuple[int, int]
    batch_size: int
    samples: int


def sizes(train: int) -> Sizes:
    """Return settings with ten texts per latent, two levels of sparsity, 30 epochs (few texts) to 5, and the budget's
    default batch, but at least twenty batches per epoch."""
    from saebench.config import default_batch_size

    dict_size = max((width for width in WIDTHS if width * TEXTS_PER_LATENT <= train), default=WIDTHS[0])
    k = (4, 8) if dict_size < 192 else (8, 16) if dict_size < 1536 else (16, 32)
    epochs = 30 if train < 10_000 else 20 if train < 50_000 else 10 if train < 150_000 else 5
    samples = max(1000, round(epochs * train, -3))
    twentieth = 1 << max(5, (train // 20).bit_length() - 1)
    return Sizes(dict_size, k, min(twentieth, default_batch_size(samples)), samples)


def starter(name: str, found: Found, text: str, label: str | None, texts: int, folder: Path) -> str:
    """Return the spec as YAML with comments, for this number of texts; its paths are relative to `folder`."""
    from saebench.stores.sniff import language

    validation, test = (0.1, 0.2) if texts < SMALL else (0.05, 0.1)
    train = round(texts * (1 - validation - test))
    fit, spoken = sizes(train), language(found.columns[text])
    english = spoken in (None, "English")
    lines = [
        f"# Written by saebench init for {found.path.name}. Next: saebench plan, then saebench sweep with this file.",
        f"name: {name}",
        f"description: Does BatchTopK reconstruct {found.path.stem} better than TopK at the same sparsity?",
        "data:",
        f"  model: {MODEL if english else OTHER_LANGUAGES}" + ("" if english else f"  # the texts look {spoken}"),
        "  dataset:",
        *(f"    {line}" for line in _dataset(found, text, label, folder)),
        f"  num_examples: {min(MOST_TEXTS, _round_up(texts)):_}  # at most so many distinct texts; there are {texts:,}",
        f"  holdout: {{validation: {validation}, test: {test}}}  # by hash of the text; never trained on",
        f"sae:  # {fit.dict_size} latents: at least {TEXTS_PER_LATENT} training texts for each",
        f"  - {{type: topk, k: [{fit.k[0]}, {fit.k[1]}], dict_size: {fit.dict_size}}}",
        f"  - {{type: batchtopk, k: [{fit.k[0]}, {fit.k[1]}], dict_size: {fit.dict_size}}}",
        "train:",
        f"  samples: {fit.samples:_}  # {fit.samples / max(1, train):.0f} epochs",
        f"  batch_size: {fit.batch_size}",
        "  lr_factor: {low: 0.25, high: 4, log: true}  # times the default lr, which knows batch, width and type",
        "seeds: [0, 1, 2]",
        "search: {sampler: qmc, points: 6}",
        "prune: {pruner: none}  # high learning rates look weak until they fall",
        *([PROBED] if label else []),
    ]
    return "\n".join(lines) + "\n"


def _dataset(found: Found, text: str, label: str | None, folder: Path) -> Iterator[str]:
    yield f"path: {found.format}"
    yield f"data_files: {_quoted(os.path.relpath(found.path.absolute(), folder))}"
    if found.delimiter:
        yield f"delimiter: {_quoted(found.delimiter)}"
    if found.encoding:
        yield f"encoding: {found.encoding}"
    yield f"text_column: {_quoted(text)}"
    others = [name for name in found.label_columns(text) if name != label]
    more = f"  # others that could be: {', '.join(others[:5])}" if label and others else ""
    if label:
        yield f"label_column: {_quoted(label)}{more}"


def _quoted(text: str) -> str:
    """Return a YAML scalar, without quotes if that is safe."""
    return text if re.fullmatch(r"[A-Za-z_][\w./-]*", text) else json.dumps(text, ensure_ascii=False)


def _round_up(number: int) -> int:
    """Round to two digits: 2,683 becomes 2,700."""
    step: int = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step


def choose(found: Found, column: str | None, label: str | None) -> tuple[str, str | None]:
    """Return the text column and the label column: those given, else those with the longest texts and the most repeated
    values."""
    for name in (column, label):
        if name is not None and name not in found.columns:
            raise UserError(f"{found.path}: {name}: no such column (there are: {', '.join(found.columns)})")
    text = column or found.text_column()
    if text is None:
        raise UserError(f"{found.path}: no column of texts (there are: {', '.join(found.columns)}); give --column")
    return text, label or next(iter(found.label_columns(text)), None)


def described(found: Found, text: str, label: str | None) -> list[tuple[str, str, str]]:
    """Return (column, example, its use) of every column."""
    rows = []
    for name, values in found.columns.items():
        example: Any = next((value for value in values if value not in (None, "")), "")
        role = "texts" if name == text else f"labels ({len(set(map(str, values)))} different)" if name == label else ""
        rows.append((name, " ".join(str(example).split()), role))
    return rows
