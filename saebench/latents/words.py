"""The terms of each text: words and word n-grams by Unicode's rules; runs of a script without spaces between its words
(Han, Kana, Thai, Lao, Khmer, Myanmar) give character n-grams instead, and `Terms.unspaced` says how many.

A term counts once per text, so a text of a megabyte has no more weight than any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray

CHARACTERS = 20_000
"""Number of characters that are read per text."""
STOP = 0.2
"""A word in more than this share of the texts (and in more than ten) is a stop word: no term begins or ends with it."""
LONGEST_WORD = 40
"""Longest word in characters; a longer run (base64, a URL's tail) is skipped."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_RUN = rf"[{_UNSPACED}][{_UNSPACED}\p{{M}}\u30fc]*"
_WORD = rf"[\p{{L}}\p{{N}}](?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{N}}]|['\u2019.\-](?=[\p{{L}}\p{{N}}]))*"
_TOKEN = regex.compile(f"{_RUN}|{_WORD}", regex.VERSION1)
_IS_UNSPACED = regex.compile(rf"[{_UNSPACED}]", regex.VERSION1)
_ASCII = re.compile(r"[a-z0-9](?:[a-z0-9]|['.\-](?=[a-z0-9]))*")
"""_WORD in a text of ASCII in lower case: the same words in half the time."""
_LETTER = regex.compile(r"\p{L}", regex.VERSION1)
_CUT = -1
"""Separator between two texts and at other places that no n-gram crosses."""


@dataclass(frozen=True, eq=False)
class Terms:
    """A binary (texts, terms) matrix."""

    names: list[str]
    matrix: Any
    """scipy csr_array, float32, 1 if the text contains the term."""
    words: NDArray[np.int32]
    """(terms,) words (or characters) in each term."""
    unspaced: float
    """Share of the tokens that are runs of a script without spaces."""

    @property
    def texts(self) -> int:
        return int(self.matrix.shape[0])

    def frequency(self) -> NDArray[np.float64]:
        """(terms,) texts that hold each term."""
        return np.asarray(self.matrix.sum(axis=0), dtype=np.float64).ravel()


def tokens(text: str) -> list[str]:
    """Words in lower case, and runs of scripts without spaces."""
    if text.isascii():
        return [token for token in _ASCII.findall(text[:CHARACTERS].lower()) if len(token) <= LONGEST_WORD]
    return [token for token in _TOKEN.findall(text[:CHARACTERS].lower()) if len(token) <= LONGEST_WORD or _run(token)]


def _run(token: str) -> bool:
    return _IS_UNSPACED.match(token) is not None


def count_terms(texts: Sequence[str], longest: int = 3, fewest: int = 3, vocabulary: Sequence[str] = ()) -> Terms:
    """Return terms of up to `longest` words that at least `fewest` texts contain; with `vocabulary` only its words (all
    of them, in its order)."""
    ids, text_of, names, unspaced = _flatten(texts)
    stop = _stop_words(ids, text_of, len(texts), names)
    if vocabulary:
        return _restricted(ids, text_of, names, vocabulary, len(texts), unspaced)
    found = [_grams(ids, text_of, size, names, stop, fewest, len(texts)) for size in range(1, longest + 1)]
    return _assembled(found, len(texts), unspaced)


def _flatten(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str], float]:
    """Every token of every text as a number, _CUT after each run: (ids, text of each, names, share of runs)."""
    known: dict[str, int] = {}
    ids: list[int] = []
    lengths, runs, total = [], 0, 0
    for text in texts:
        before, found = len(ids), tokens(text)
        total += len(found)
        if text.isascii():
            ids += [known.setdefault(token, len(known)) for token in found]
            found = []
        for token in found:
            if _run(token):
                runs += 1
                ids += [known.setdefault(character, len(known)) for character in token]
                ids.append(_CUT)
            else:
                ids.append(known.setdefault(token, len(known)))
        ids.append(_CUT)
        lengths.append(len(ids) - before)
    text_of = np.repeat(np.arange(len(texts)), lengths)
    return np.array(ids, np.int64), text_of, list(known), runs / max(total, 1)


def _stop_words(ids: NDArray[np.int64], text_of: NDArray[np.int64], texts: int, names: list[str]) -> NDArray[np.bool_]:
    """Return which words are in too many texts or have no letter."""
    pairs = np.unique(ids[ids >= 0] + text_of[ids >= 0] * len(names))
    often = np.bincount(pairs % max(len(names), 1), minlength=len(names)) > max(STOP * texts, 10)
    found: NDArray[np.bool_] = often | np.array([_LETTER.search(name) is None for name in names], dtype=bool)
    return found


_Found = tuple[list[str], NDArray[np.int64], NDArray[np.int64], int]
"""Names, text and term of every pair, words in a term."""


def _grams(
    ids: NDArray[np.int64],
    text_of: NDArray[np.int64],
    size: int,
    names: list[str],
    stop: NDArray[np.bool_],
    fewest: int,
    texts: int,
) -> _Found:
    """Return runs of `size` tokens that neither begin nor end with a stop word, in at least `fewest` texts."""
    count = max(len(ids) - size + 1, 0)
    windows = [ids[i : i + count] for i in range(size)]
    good = np.ones(count, dtype=bool)
    for window in windows:
        good &= window >= 0
    good[good] &= ~stop[windows[0][good]] & ~stop[windows[-1][good]]
    keys = np.zeros(int(good.sum()), np.int64)
    for window in windows:  # folded to consecutive numbers at each step, so that products never overflow
        keys = np.unique(keys * len(names) + window[good], return_inverse=True)[1].astype(np.int64)
    terms = int(keys.max()) + 1 if len(keys) else 0
    pairs, first = np.unique(text_of[:count][good] * max(terms, 1) + keys, return_index=True)
    term, text = pairs % max(terms, 1), pairs // max(terms, 1)
    often = np.bincount(term, minlength=terms) >= min(fewest, max(texts, 1))
    place = np.flatnonzero(good)[first]
    where = np.zeros(terms, np.int64)
    where[term] = place
    kept = np.flatnonzero(often)
    number = np.full(terms, -1, np.int64)
    number[kept] = np.arange(len(kept))
    use = often[term]
    spelt = [_spelt([names[ids[where[t] + i]] for i in range(size)]) for t in kept]
    return spelt, text[use], number[term[use]], size


def _spelt(parts: list[str]) -> str:
    """Join words with spaces, characters of a script without spaces directly."""
    return ("" if all(map(_run, parts)) else " ").join(parts)


def _assembled(found: Sequence[_Found], texts: int, unspaced: float) -> Terms:
    from scipy.sparse import csr_array

    names: list[str] = []
    rows, columns, sizes = [], [], []
    for spelt, text, term, size in found:
        rows.append(text)
        columns.append(term + len(names))
        sizes += [size] * len(spelt)
        names += spelt
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = csr_array((np.ones(len(row), np.float32), (row, column)), shape=(texts, len(names)))
    return Terms(names, matrix, np.array(sizes, np.int32), unspaced)


def _restricted(
    ids: NDArray[np.int64],
    text_of: NDArray[np.int64],
    names: list[str],
    vocabulary: Sequence[str],
    texts: int,
    unspaced: float,
) -> Terms:
    from scipy.sparse import csr_array

    wanted = {name: i for i, name in enumerate(vocabulary)}
    number = np.array([wanted.get(name, -1) for name in names], np.int64)
    term = np.where(ids >= 0, number[ids] if len(names) else -1, -1)
    pairs = np.unique(text_of[term >= 0] * len(vocabulary) + term[term >= 0])
    row, column = pairs // len(vocabulary), pairs % len(vocabulary)
    matrix = csr_array((np.ones(len(row), np.float32), (row, column)), shape=(texts, len(vocabulary)))
    return Terms(list(vocabulary), matrix, np.ones(len(vocabulary), np.int32), unspaced)


def membership(names: Sequence[str], rows: NDArray[np.int64], members: NDArray[np.bool_], texts: int) -> Terms:
    """Classes as terms: text rows[i] "holds" class c where members[i, c]."""
    from scipy.sparse import csr_array

    row, column = np.nonzero(members)
    matrix = csr_array((np.ones(len(row), np.float32), (rows[row], column)), shape=(texts, len(names)))
    return Terms(list(names), matrix, np.ones(len(names), np.int32), 0.0)
