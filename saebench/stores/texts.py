"""Texts: cleaned, identified by their hash, divided into parts. No torch.

The part of a text (train, validation or test) depends only on the text, so that neither the order of the stream nor a
cap or duplicate can move a text to another part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from saebench.errors import DataError

Part = Literal["train", "validation", "test"]
EVALUATED: tuple[Part, ...] = ("validation", "test")
"""Parts that are not trained on."""


@dataclass(frozen=True, slots=True)
class Text:
    """One cleaned text with its row, hash and label."""

    text: str
    label: Any
    hash: int
    """64 bits; decides the part."""
    row: int = -1
    """Number of its row in the dataset, from 0."""


@dataclass
class Counts:
    """Rows read, kept, and left out by reason."""

    read: int = 0
    kept: int = 0
    duplicate: int = 0
    empty: int = 0
    """None, "" and whitespace."""
    non_string: int = 0

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def hash_text(text: str) -> int:
    """64 bits of BLAKE2b over the UTF-8 of the cleaned text."""
    return int.from_bytes(_digest(text)[:8], "big")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def threshold(share: float) -> int:
    """Return the hash below which this share of all hashes lies."""
    return min(int(share * 2**64), 2**64 - 1)


@dataclass(frozen=True)
class Division:
    """The division into parts: test has the lowest hashes, validation the next, training all others."""

    validation: float
    """Share of the texts."""
    test: float
    """Share of the texts."""

    @property
    def test_below(self) -> int:
        """Hashes below this are of the test part."""
        return threshold(self.test)

    @property
    def train_from(self) -> int:
        """Hashes from this one on are of the training part."""
        return threshold(self.validation + self.test)

    def part(self, hash_: int) -> Part:
        """The part of a text."""
        return "test" if hash_ < self.test_below else "validation" if hash_ < self.train_from else "train"


def clean(text: str, how: str = "whitespace") -> str:
    """Return the text as it is encoded (`data.clean`). whitespace: every run of whitespace becomes one space, and both
    ends are stripped. none: unchanged. Lone surrogates, which UTF-8 cannot encode, always become question marks."""
    return (" ".join(text.split()) if how == "whitespace" else text).encode("utf-8", "replace").decode()


def select(
    values: Iterable[tuple[Any, Any]], counts: Counts, cap: int, *, distinct: bool = True, how: str = "whitespace"
) -> Iterator[Text]:
    """The first `cap` usable texts among (value, label) pairs, cleaned; counts the rows left out by reason."""
    seen: set[bytes] = set()
    for value, label in values:
        counts.read += 1
        if value is not None and not isinstance(value, str):
            counts.non_string += 1
            continue
        text = clean(value or "", how)
        if not text or text.isspace():
            counts.empty += 1
            continue
        digest = _digest(text)
        if distinct and digest in seen:
            counts.duplicate += 1
            continue
        if distinct:
            seen.add(digest)
        counts.kept += 1
        yield Text(text, label, int.from_bytes(digest[:8], "big"), counts.read - 1)
        if counts.kept >= cap:
            return


def clean_texts(texts: Iterable[Any], how: str) -> list[str]:
    """Return a list of texts, each cleaned. Raises DataError for an item that is not a text."""
    if isinstance(texts, bytes) or not isinstance(texts, Iterable):
        raise DataError(f"texts: {texts!r:.50}: must be a text or a list of texts")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"texts[{i}]: {text!r:.50}: must be text; leave out rows without one")
    return [clean(text, how) for text in texts]
