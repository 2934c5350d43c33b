"""The first part of the page: the verdict and its figure, the best SAEs, and the checks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report import svg
from saebench.report.checks import Check
from saebench.report.columns import best_trial, sparsity
from saebench.report.comparison import CONCLUSIVE
from saebench.report.forest import forest
from saebench.report.glossary import explained
from saebench.report.headline import leaders, standing
from saebench.report.judge import label
from saebench.report.markup import text
from saebench.report.table import Row, percentage, plain

if TYPE_CHECKING:
    from saebench.report.document import Report

_PAIRS = 6
"""Most pairs of arms whose metrics are shown under the verdict."""
_FIGURE = 520
"""Width of the figure beside the verdict, in pixels."""
FVU_MEANS = (
    "FVU is the fraction of variance unexplained: 0 is a perfect reconstruction, 1 is what predicting the mean gives."
)


def answer(report: Report, seen: set[str]) -> str:
    """Return the whole part."""
    seen.add("FVU")
    figure = _forest(report)
    words = (
        f'<section id="verdicts" aria-label="Verdict"><p class="verdict">{explained(text(report.verdict), seen)}</p>'
        f'<p class="note">{FVU_MEANS}</p>{_metrics(report)}{_in_full(report)}</section>'
    )
    beside = f'<div class="beside">{words}{figure}</div>' if figure else words
    return beside + _cards(report) + _checks(report) + _notes(report.record.notes)


def _forest(report: Report) -> str:
    chart = forest(report)
    if not chart.panels:
        return ""
    drawn = "".join(f'<div class="{kind}">{svg.chart(chart, width)}</div>'
                    for kind, width in (("wide", _FIGURE), ("narrow", svg.NARROW)))  # fmt: skip
    return (
        f'<section id="chart-forest"><figure><h3>{text(chart.title)}</h3>{drawn}'
        f"<figcaption>{text(chart.note)}</figcaption></figure></section>"
    )


# --- metrics by pair -------------------------------------------------------------------------------------------------


def _metrics(report: Report) -> str:
    """Return a line per metric; several pairs are folded."""
    rows = report.table("metrics").rows()
    pairs = list(dict.fromkeys(row["pair"] for row in rows))
    html = ""
    for pair in pairs[:_PAIRS]:
        mine = [row for row in rows if row["pair"] == pair]
        said = [row["would_decide"] for row in mine]
        lines = "".join(_metric(row, said[i] not in said[:i]) for i, row in enumerate(mine))
        opened = " open" if len(pairs) == 1 else ""
        head = f'{text(pair)} <span class="count">by metric</span>'
        html += f'<details class="metrics"{opened}><summary>{head}</summary><dl>{lines}</dl></details>'
    html = f'<div class="pairs">{html}</div>' if html else ""
    if len(pairs) > _PAIRS:
        html += f'<p class="note">{len(pairs) - _PAIRS} more pairs of arms: see <a href="#metrics">the table</a>.</p>'
    return html


def _metric(row: Row, first: bool) -> str:
    """Return a metric's outcome, with what would decide it unless a line above says the same."""
    kind = "decided" if row["outcome"] in CONCLUSIVE else "open"
    why = f'<span class="why">{text(row["would_decide"])}</span>' if row["would_decide"] and first else ""
    return (
        f'<div class="{kind}"><dt>{text(label(row["metric"]))}</dt><dd><b class="badge">{text(row["said"])}</b> '
        f"{text(row['difference_text'])} {why}</dd></div>"
    )


def _in_full(report: Report) -> str:
    if not report.comparisons:
        return ""
    items = "".join(f"<li>{text(sentence)}.</li>" for sentence in report.sentences)
    return f"<details><summary>Every pair in full</summary><ul>{items}</ul></details>"


# --- SAEs to take ----------------------------------------------------------------------------------------------------


def _cards(report: Report) -> str:
    """The best SAE of every level of sparsity, with the command that copies it."""
    rows = leaders(report)
    if not rows:
        return ""
    cards = "".join(_card(row, standing(report, row)) for row in rows)
    return f'<section id="best"><h3>The best SAE at each level</h3><div class="cards">{cards}</div></section>'


def _card(row: Row, left_open: str) -> str:
    """`left_open`: what the verdict leaves open of it, in words."""
    trial = best_trial(row)
    half = row["fvu_high"] - row["fvu"]
    interval = f' <span class="pm">± {half:.4f}</span>' if math.isfinite(half) else ""
    of = f"{text(row['group'])}, " if row["group"] else ""
    still = f' <span class="still">({text(left_open)})</span>' if left_open else ""
    facts = [("explained", percentage(row["explained_variance"])), ("L0", plain(round(row["l0"], 1))),
             ("latents", f"{row['dict_size']:,.0f}"), ("dead", percentage(row["dead_fraction"]))]  # fmt: skip
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts if value != "-")
    folder = re.sub(r"[^\w.-]+", "-", f"{row['arm']}-{row['level']:g}" if sparsity(row) != "-" else row["arm"]).strip(
        "-"
    )
    commands = "".join(
        f'<div class="command"><code>{text(line)}</code><button type="button" class="copy">copy</button></div>'
        for line in (f"saebench export {trial} --to {folder}", f"saebench latents {trial}")
    )
    return (
        f'<article class="card"><h4>{of}{text(sparsity(row))}</h4><p class="arm">{text(row["arm"])}{still}</p>'
        f'<p class="big">FVU {plain(row["fvu"])}{interval}</p><dl>{shown}</dl>{commands}</article>'
    )


# --- before use ------------------------------------------------------------------------------------------------------


def _checks(report: Report) -> str:
    """Return the checks: failed ones first, passed ones folded."""
    left, passed = [c for c in report.checks if not c.passed], [c for c in report.checks if c.passed]
    items = "".join(map(_check, left))
    fold = f"<details><summary>{len(passed)} passed</summary><ul>{''.join(map(_check, passed))}</ul></details>"
    body = f"<ul>{items}</ul>{fold if passed else ''}" if report.checks else ""
    head = '<h3 id="checks-title">Before you use it</h3>'
    return f'<section id="checks" aria-labelledby="checks-title">{head}{body}</section>'


def _check(check: Check) -> str:
    kind = {False: "failed", None: "unknown", True: "passed"}[check.passed]
    advice = f' <span class="why">{text(check.advice)}.</span>' if check.passed is False and check.advice else ""
    return f'<li class="{kind}"><b>{text(check.name)}</b> {text(check.found)}.{advice}</li>'


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{text(note)}</li>" for note in notes)
    return f'<section class="notes" aria-label="Notes"><h3>Notes</h3><ul>{items}</ul></section>' if notes else ""
