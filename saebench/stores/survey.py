"""The results of one pass over the texts of a stream, without encoding."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from saebench.stores.texts import EVALUATED, Division, Part, Text

PART_LIMIT = 65_536
"""Most rows of the validation or test part kept in memory; of a larger part, those of the lowest hashes."""


@dataclass(frozen=True)
class Survey:
    """The results of one pass over the texts."""

    asked: int
    """Size of the sample."""
    train: int
    held: dict[Part, list[Text]]
    sample: list[Text]

    @classmethod
    def of(cls, texts: Iterator[Text], division: Division, sample: int) -> Survey:
        train = 0
        heaps: dict[Part, list[tuple[int, int, Text]]] = {"train": [], "validation": [], "test": []}
        for place, text in enumerate(texts):
            part = division.part(text.hash)
            heap, limit = heaps[part], sample if part == "train" else PART_LIMIT
            train += part == "train"
            if len(heap) < limit:
                heapq.heappush(heap, (-text.hash, -place, text))
            elif limit and -text.hash > heap[0][0]:
                heapq.heapreplace(heap, (-text.hash, -place, text))
        return cls(sample, train, {part: _in_order(heaps[part]) for part in EVALUATED}, _in_order(heaps["train"]))


def _in_order(heap: list[tuple[int, int, Text]]) -> list[Text]:
    return [text for _, _, text in sorted(heap, key=lambda item: -item[1])]


def labels_of(texts: Sequence[Text]) -> list[Any] | None:
    labels = [text.label for text in texts]
    return labels if any(label is not None for label in labels) else None
