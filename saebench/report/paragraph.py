"""A report in a paragraph: what is better at what, what is undecided, what would decide it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from saebench.report.comparison import Comparison, arms_of
from saebench.report.controls import against_control, any_of, is_control, is_control_of
from saebench.report.judge import Judged, label
from saebench.report.table import number_of
from saebench.report.verdict import sentence, what_would_decide
from saebench.report.wording import difference_text, listed, margin_text

_NAMED = 2
"""Most undecided metrics that are named; the lines below the paragraph name all."""
_FEW = 1
"""Most pairs of arms with a sentence each; more are summarised as a ranking."""


def paragraph(judged: Sequence[Judged], primary: Sequence[str]) -> str:
    """Return a few sentences: what is better at what, what is equal, what is undecided and what would decide it."""
    first = primary[0]
    pairs = [found for found in judged if found]
    main = [f for f in pairs if not is_control(any_of(f).a) and not is_control(any_of(f).b)]
    controls = [f for f in pairs if is_control_of(any_of(f).a, any_of(f).b) or is_control_of(any_of(f).b, any_of(f).a)]
    said = [_said(found, first) for found in main] if len(main) <= _FEW else [_ranking(main, first)]
    said += [against_control(found) for found in controls]
    return " ".join(f"{_begun(text)}." for text in said if text)


def _begun(text: str) -> str:
    """Return a sentence with a capital, unless it starts with the name of an arm."""
    return _capital(text) if text.startswith(("so far", "the data", "no arm")) else text


def _said(found: Judged, first: str) -> str:
    main = found.get(first) or any_of(found)
    others = _others(found, main)
    return f"{sentence(main)}{f'. {others}' * bool(others)}"


def _others(found: Judged, main: Comparison) -> str:
    """The other metrics, by outcome."""
    others = {name: c for name, c in found.items() if c is not main}
    parts = []
    for outcome in ("better", "worse"):
        mine = [f"{label(n)} ({difference_text(c, c.mean)})" for n, c in others.items() if c.outcome == outcome]
        parts += [f"{outcome} in {listed(mine)}"] if mine else []
    equal = [label(n) for n, c in others.items() if c.equal]
    parts += [f"equal in {listed(equal)}"] if equal else []
    undecided = [label(n) for n, c in others.items() if c.outcome == "undecided"]
    parts += [f"not decided in {listed(undecided)}"] if undecided and len(undecided) <= _NAMED else []
    parts += [f"not decided in {len(undecided)} others"] if len(undecided) > _NAMED else []
    return f"In other metrics {main.a} is {'; '.join(parts)}" if parts else ""


def _ranking(main: Sequence[Judged], first: str) -> str:
    """Return which arm leads in the first metric, and over which others this is certain."""
    pairs = [found[first] for found in main if first in found and found[first].outcome != "not compared"]
    if not pairs:
        return ""
    if any(c.outcome == "so far" for c in pairs):
        return f"so far ({pairs[0].unfinished}), nothing is decided between {listed(arms_of(pairs))}"
    ahead = dict.fromkeys(arms_of(pairs), 0.0)
    for c in pairs:
        if math.isfinite(c.mean):
            ahead[c.a], ahead[c.b] = ahead[c.a] - c.mean, ahead[c.b] + c.mean
    leader = max(ahead, key=lambda arm: ahead[arm])
    mine = [c for c in pairs if leader in (c.a, c.b)]
    beaten = [f"{c.other(leader)} ({difference_text(c, c.mean_of(leader))})"
              for c in mine if c.winner == leader]  # fmt: skip
    equal = [c.other(leader) for c in mine if c.equal]
    open_ = [c for c in mine if c.outcome == "undecided"]
    parts = [f"better than {listed(beaten)}"] if beaten else []
    parts += [f"equal to {listed(equal)} within {margin_text(mine[0])}"] if equal else []
    parts += [f"not told apart from {listed([c.other(leader) for c in open_])}"] if open_ else []
    rest = len(pairs) - len(mine)
    more = f". {number_of(rest, 'more pair')} of arms: see the table verdict" if rest else ""
    why = f". {_capital(what_would_decide(open_[0]))}" if open_ else ""
    what = "FVU" if first == "fvu" else label(first)
    if not beaten:
        return f"no arm is shown to be better in {what} at equal L0: {leader} is {'; '.join(parts)}{why}{more}"
    head = "has the least FVU at equal L0" if first == "fvu" else f"leads in {what} at equal L0"
    return f"{leader} {head}: {'; '.join(parts)}{why}{more}"


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
