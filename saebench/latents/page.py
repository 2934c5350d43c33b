"""The latents of a trial as one page: no network, no libraries; all data in the file as JSON, drawn by page.js.

Texts go into the page as data and are shown through `textContent` alone, so that none of them is ever markup.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from saebench.latents.analysis import Latents
from saebench.latents.facts import Example
from saebench.latents.neighbours import SAME
from saebench.latents.visible import visible

MOST = 12_288
"""Most latents on a page, the most frequent ones; a browser loads that many with their texts in about a second."""
CHARACTERS = 320
"""Most characters of a text on the page."""


def page(analysis: Latents, fired: Sequence[tuple[str, dict[int, float]]] = (), scores: Sequence[str] = ()) -> str:
    """Return the page as text. `fired`: the user's sentences, and which latents fire on each; `scores`: lines."""
    here = files("saebench.latents")
    analysis.compute()
    data = json.dumps(_data(analysis, fired), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Template(here.joinpath("page.html").read_text("utf-8")).substitute(
        title=escape(f"{analysis.trial.name}: latents"),
        about=escape(_about(analysis)),
        notes="".join(f"<li>{escape(visible(note))}</li>" for note in [*analysis.notes, *_cut(analysis), *scores]),
        style=here.joinpath("page.css").read_text("utf-8"),
        script=here.joinpath("page.js").read_text("utf-8"),
        data=data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    )


def _about(analysis: Latents) -> str:
    s = analysis.summary()
    more = f", {s['found_by_other_seeds']:.0%} found by other seeds" if analysis.others else ""
    return (
        f"{s['type']}, {s['stratum']}, seed {s['seed']}: {s['live']:,} of {s['dict_size']:,} latents fire on "
        f"{s['texts']:,} texts ({s['part']} part), {s['l0']:.1f} per text; {s['families']} families{more}"
    )


def _cut(analysis: Latents) -> list[str]:
    return [f"the {MOST:,} most frequent latents are shown"] if len(analysis.live) > MOST else []


class _Texts:
    """Number the texts, each once."""

    def __init__(self, analysis: Latents) -> None:
        self._study, self._known = analysis, dict[int, int]()
        self.shown: list[str] = []

    def number(self, row: int) -> int:
        if row not in self._known:
            self._known[row] = len(self.shown)
            self.shown.append(visible(self._study.example(row), CHARACTERS))
        return self._known[row]

    def all(self, examples: Iterable[Example], sign: float) -> list[list[float | None]]:
        return [[self.number(e.row), _short(sign * e.activation)] for e in examples]


def _data(analysis: Latents, fired: Sequence[tuple[str, dict[int, float]]]) -> dict[str, Any]:
    order = np.lexsort((analysis.live, -analysis.facts.firing[analysis.live]))[:MOST]
    texts, place = _Texts(analysis), {int(analysis.live[i]): n for n, i in enumerate(order)}
    ends, spots, against, matched = analysis.trial.ends, analysis.map, analysis.against, analysis.matched
    spread = max(float(np.abs(spots).max(initial=0)), 1e-12)
    rows = []
    for i in order.tolist():
        latent, label = int(analysis.live[i]), analysis.labels[i]
        sign = ends.sign(latent)
        middle = [example for some in analysis.by_latent.deciles(latent) for example in some[:1]]
        rows.append(
            {
                "n": latent,
                "k": [[k.term, _short(k.share), _short(k.silent)] for k in analysis.keywords[i]],
                "d": _short(analysis.facts.density[latent]),
                "f": int(analysis.facts.firing[latent]),
                "m": _short(sign * analysis.facts.mean[latent]),
                "x": _short(sign * analysis.facts.largest[latent]),
                "l": [label.term, _short(label.share), _short(label.silent)] if label else None,
                "g": int(analysis.families[0][i]),
                "s": _short(analysis.found[i]),
                "c": [[int(analysis.live[j]), _short(v)] for j, v in analysis.near.pairs(i)],
                "o": [[int(analysis.live[j]), _short(v)] for j, v in analysis.together.pairs(i)],
                "t": texts.all(analysis.by_latent.top(latent), sign),
                "q": texts.all(middle, sign),
                "p": [round(float(v) / spread, 4) for v in spots[i]],
                "a": [against.ends.name(int(matched[0][i])), _short(matched[1][i])] if matched and against else None,
            }
        )
    return {
        "latents": rows,
        "ends": analysis.codes.dict_size if analysis.signed else 0,
        "texts": texts.shown,
        "same": SAME,
        "against": against.name if against else None,
        "fired": [
            {
                "text": visible(text, CHARACTERS),
                "on": {str(end): _short(v) for n, v in values.items() if (end := ends.of(n, v)) in place},
            }
            for text, values in fired
        ],
    }


def _short(value: Any) -> float | None:
    """Four significant digits; None for NaN."""
    number = float(value)
    return float(f"{number:.4g}") if number == number else None
