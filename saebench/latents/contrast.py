"""Compare the texts of a sweep with the texts of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from saebench.errors import UserError
from saebench.latents.codes import Codes, offsets_of
from saebench.latents.encode import Encoder
from saebench.latents.targets import FEWEST, Target
from saebench.stores.texts import clean, hash_text

MOST = 20_000
"""Texts of the file that are read."""


def other_corpus(
    encoder: Encoder, texts: Iterable[str], known: set[int]
) -> tuple[tuple[Codes, Codes], tuple[list[str], list[str]]]:
    """Codes and texts of the other corpus, in two halves by hash: one for the ranking, one for the measurement. Texts
    that are also in the sweep's corpus (`known`, by hash) and repeated ones are left out."""
    halves: tuple[list[str], list[str]] = ([], [])
    for text, number in islice(_new(texts, encoder.trial.config.data.clean, known), MOST):
        halves[number % 2].append(text)
    if min(map(len, halves)) < FEWEST:
        raise UserError(
            f"--contrast: {sum(map(len, halves))} texts that the sweep's corpus does not hold; at least {2 * FEWEST}"
        )
    codes = tuple(_encoded(encoder, half) for half in halves)
    return (codes[0], codes[1]), halves


def _new(texts: Iterable[str], how: str, known: set[int]) -> Iterator[tuple[str, int]]:
    seen = set(known)
    for raw in texts:
        text = clean(raw, how)
        number = hash_text(text)
        if text and not text.isspace() and number not in seen:
            seen.add(number)
            yield text, number


def _encoded(encoder: Encoder, texts: list[str]) -> Codes:
    return stacked([codes for _, codes in encoder.stream(texts)])


def stacked(parts: list[Codes]) -> Codes:
    """Concatenate the rows of several codes of one SAE."""
    values, latents = np.concatenate([p.values for p in parts]), np.concatenate([p.latents for p in parts])
    return Codes(values, latents, offsets_of(np.concatenate([p.counts for p in parts])), parts[0].dict_size)


def contrast(name: str, ours: tuple[int, int], theirs: tuple[int, int]) -> Target:
    """Membership of the other corpus, for codes with our rows first: (for the ranking, for the measurement)."""
    rows = tuple(np.arange(a + b) for a, b in zip(ours, theirs, strict=True))
    values = tuple(np.repeat([0.0, 1.0], [a, b]) for a, b in zip(ours, theirs, strict=True))
    return Target(f"in {name}", "class", rows, values)
