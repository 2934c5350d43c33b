"""Terms and keywords: by hand on a few texts, and by an independent computation on many."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from latents.planted import FILLERS, TOPICS, texts

from saebench.latents.codes import Codes
from saebench.latents.keywords import keywords
from saebench.latents.words import CHARACTERS, count_terms, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat's well-known U.S. naïve café, 3.5%", ["the", "cat's", "well-known", "u.s", "naïve", "café", "3.5"]),
        ("हिन्दी में लिखा", ["हिन्दी", "में", "लिखा"]),  # vowel signs belong to the word
        ("Straße und Übergröße_x", ["straße", "und", "übergröße", "x"]),
        ("机器学习 and ภาษาไทย", ["机器学习", "and", "ภาษาไทย"]),
        ("カメラ", ["カメラ"]),
        ("🙂 -- ''", []),
        ("a" * 41 + " b", ["b"]),
    ],
)
def test_tokens_follow_unicode(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_terms_are_words_and_n_grams_that_begin_and_end_with_content() -> None:
    some = ["the bank of the river", "the bank of the lake", "a bank of the sea", *["the"] * 10, "x y z the"]
    found = count_terms(some, longest=4, fewest=3)
    assert sorted(found.names) == ["bank", "bank of", "of"], "'the' is a stop word: 'the bank', 'bank of the' are none"
    found = count_terms([*some, *(f"filler{i}" for i in range(60))], longest=4, fewest=3)
    assert {"the", "bank of the", "of the"} <= set(found.names), "in a fifth of the texts it is none"
    assert "bank of the river" not in found.names  # in one text
    assert found.frequency()[found.names.index("bank")] == 3


def test_n_grams_do_not_reach_from_one_text_into_the_next() -> None:
    found = count_terms(["alpha", "beta"] * 5 + ["gamma"] * 40, fewest=1)
    assert "alpha beta" not in found.names


def test_scripts_without_spaces_give_character_n_grams_and_say_so() -> None:
    some = ["我喜欢机器学习", "机器学习很有趣", "今天天气好", "天气不好", "学习机器"] * 2
    found = count_terms(some, fewest=3)
    assert found.unspaced == 1
    assert {"机器", "学习", "机器学", "天气"} <= set(found.names)
    assert count_terms(["plain words"] * 3).unspaced == 0


def test_a_text_of_a_megabyte_costs_no_more_than_its_beginning() -> None:
    begin = time.process_time()
    found = count_terms(["word " * 200_000, "x" * 1_000_000, "late", "word late"], longest=1, fewest=1)
    assert time.process_time() - begin < 2
    assert found.frequency()[found.names.index("word")] == 2, "a term counts once per text"
    assert not any(len(name) > CHARACTERS for name in found.names)


def test_no_texts_and_empty_texts_have_no_terms() -> None:
    assert count_terms([]).names == []
    assert count_terms(["", " ", "..."]).names == []


def test_the_score_of_a_keyword_by_hand() -> None:
    """Latent 0 fires on texts 0 (2.0) and 1 (1.0) of five; "river" is in texts 0, 1 and 3."""
    some = ["river", "river bank", "bank", "river", "sea"]
    codes = Codes.of(np.array([[2.0], [1.0], [0], [0], [0]], np.float32))
    terms = count_terms(some, longest=1, fewest=1)
    river = (
        next(k for k in keywords(codes, terms, [0])[0] if k.term == "river") if keywords(codes, terms, [0])[0] else None
    )
    silent, n = 1 / 3, 9 / 5
    expected = (1 - silent - 2 * math.sqrt(silent * (1 - silent) / n)) * math.log(1 + 5 / 3)
    assert expected < 0.3
    assert (river is None) == (expected <= 0)
    if river:
        assert river.score == pytest.approx(expected)
        assert (river.share, river.silent) == (1.0, pytest.approx(1 / 3))


def test_scores_agree_with_a_computation_text_by_text() -> None:
    rows = [row["text"] for row in texts(300)]
    draw = np.random.default_rng(0)
    dense = np.where(draw.random((300, 6)) < 0.2, draw.random((300, 6)), 0).astype(np.float32)
    dense[:, 5] = [sum(word in text.split() for word in TOPICS["music"]) for text in rows]
    terms = count_terms(rows, longest=1)
    for latent, found in enumerate(keywords(Codes.of(dense), terms, range(6), most=50)):
        a = dense[:, latent].astype(float)
        for keyword in found:
            holds = np.array([keyword.term in text.split() for text in rows])
            share, silent = a[holds].sum() / a.sum(), holds[a == 0].mean()
            error = math.sqrt(silent * (1 - silent) / (a.sum() ** 2 / (a**2).sum()))
            assert keyword.score == pytest.approx((share - silent - 2 * error) * math.log(1 + 300 / holds.sum()))
    assert {k.term for k in keywords(Codes.of(dense), terms, [5])[0]} <= set(TOPICS["music"])


def test_stop_words_are_known_by_frequency_in_any_language() -> None:
    """Fillers are in nearly every text; renaming them to words of no language changes nothing."""
    rows = [row["text"] for row in texts(300)]
    for i, word in enumerate(FILLERS):
        rows = [text.replace(f" {word} ", f" zzq{i}x ") for text in rows]
    dense = np.array([[1.0 * ("river" in text)] for text in rows], np.float32)
    found = [k.term for k in keywords(Codes.of(dense), count_terms(rows), [0])[0]]
    assert found[0] == "river"
    assert not any("zzq" in term.split()[0] or "zzq" in term.split()[-1] for term in found)
    assert not {"zzq0x", "zzq1x"} & set(found)


def test_a_term_inside_another_is_shown_once() -> None:
    rows = ["new york city"] * 5 + ["new car", "york house", "city hall"] * 8 + [f"other{i}" for i in range(60)]
    dense = np.array([[1.0 if i < 5 else 0.0] for i in range(len(rows))], np.float32)
    found = [k.term for k in keywords(Codes.of(dense), count_terms(rows), [0])[0]]
    assert found == ["new york city"]


def test_ascii_texts_have_the_words_of_any_text() -> None:
    """They are read by a pattern of their own: an accent that begins no word must not change the others."""
    texts = ["Don't stop-me 3.14 at a.b-c' -x y's 'quoted' e-mail.", "", "...", f"{'x' * 50} ok", "A1-B2 c_d (e)"]
    for text in texts:
        assert tokens(text) == [token for token in tokens(f"{text} \u00e9") if token != "\u00e9"]
