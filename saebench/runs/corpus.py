"""Sentences on the texts from a sweep's lock (its `data`): rows left out, texts cut, leaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LEFT_OUT = {
    "duplicate": "equal to an earlier text",
    "empty": "empty",
    "non_string": "not text",
}
"""Count in the lock -> why such rows are left out."""


def left_out(data: Mapping[str, Any]) -> str | None:
    """One sentence on the rows of the dataset that are not used, with the reasons; None if all are."""
    reasons = [f"{data[key]:,} {why}" for key, why in LEFT_OUT.items() if data.get(key)]
    if data.get("near_duplicate"):
        near = f"nearly equal to an earlier text (cosine above {data['deduplicate']:g})"
        reasons.append(f"{data['near_duplicate']:,} {near}")
    return f"of {data.get('read', 0):,} rows read, left out: {', '.join(reasons)}" if reasons else None


def truncated(data: Mapping[str, Any]) -> str | None:
    """One sentence on texts that are cut at the encoder's limit; None if there are none."""
    if not data.get("truncated"):
        return None
    limit = f" of {data['max_seq_length']:,} tokens" if data.get("max_seq_length") else ""
    count = data["truncated"]
    return f"{count:,} {'text was' if count == 1 else 'texts were'} cut at the encoder's limit{limit}"


def leaks(data: Mapping[str, Any]) -> list[str]:
    """A sentence per kind of (near-)duplicate between the evaluated texts and the training texts."""
    found = [
        f"{data[key]:,} of the {part} texts have the same embedding as a training text"
        for part, key in (("validation", "equal_validation"), ("test", "equal_test"))
        if data.get(key)
    ]
    if data.get("near_test"):
        found.append(
            f"{data['near_test']:,} of {data['near_test_of']:,} test texts have a training text at a cosine above "
            f"{data['near_above']:g}; data.deduplicate: {data['near_above']:g} leaves such texts out"
        )
    return found


def sentences(data: Mapping[str, Any]) -> list[str]:
    """Return all these sentences."""
    return [sentence for sentence in (left_out(data), truncated(data), *leaks(data)) if sentence]
