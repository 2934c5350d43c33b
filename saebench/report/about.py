"""What a report is about: the question, the data, the budget, for readers who do not know the sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from pandas import DataFrame

MANY = 6
"""Most values of one parameter that are listed."""


def about(descriptions: Mapping[str, str], frame: DataFrame) -> list[str]:
    """The lines under a report's name: the description of each sweep, then encoder, texts, budget and seeds.

    A part whose parameter no trial has is left out; a parameter in which trials differ has all its values.
    """
    said = {sweep: " ".join(text.split()) for sweep, text in descriptions.items() if text.strip()}
    lines = [text if len(descriptions) == 1 else f"{sweep}: {text}" for sweep, text in said.items()]
    parts = [_data(frame), _texts(frame), _one(frame, "samples", "{} examples per trial"), _seeds(frame)]
    facts = "; ".join(part for part in parts if part)
    return [*lines, facts] if facts else lines


def _data(frame: DataFrame) -> str:
    model, dataset = _one(frame, "data.model", "{}"), _one(frame, "data.dataset", "{}")
    if dataset and PurePath(model).name == dataset:  # both are named after precomputed embeddings
        return f"embeddings of {dataset}"
    texts = dataset + _one(frame, "data.split", " [{}]") if dataset else ""
    return " on ".join(part for part in (model, texts) if part)


def _texts(frame: DataFrame) -> str:
    ended = frame[frame["state"] == "complete"] if "state" in frame.columns else frame
    cap, held = _one(frame, "data.num_examples", "up to {} texts"), _one(ended, "final/examples", "{} test texts")
    return ", ".join(part for part in (cap, held) if part)


def _seeds(frame: DataFrame) -> str:
    values = _values(frame, "seed")
    return f"seed{'s' * (len(values) > 1)} {_listed(values, ', ')}" if values else ""


def _one(frame: DataFrame, key: str, words: str) -> str:
    values = _values(frame, key)
    return words.format(_listed(values, " and ")) if values else ""


def _values(frame: DataFrame, key: str) -> list[Any]:
    """Return the different values of a column, in order; none if the column is missing."""
    values = pd.unique(frame[key].dropna()).tolist() if key in frame.columns else []
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _listed(values: Sequence[Any], between: str) -> str:
    shown = [value if isinstance(value, str) else f"{float(value):,.10g}" for value in values[:MANY]]
    return between.join([*shown, *["..."] * (len(values) > MANY)])
