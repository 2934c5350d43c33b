"""The result of a report in one short sentence, and the best SAE of every level of sparsity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from saebench.report.comparison import Comparison, arms_of
from saebench.report.controls import is_control
from saebench.report.judge import label
from saebench.report.points import arms
from saebench.report.table import Row, number_of
from saebench.report.wording import listed, margin_text

if TYPE_CHECKING:
    from saebench.report.document import Report

_MOST = 4
"""Arms up to which a headline names them all."""


def headline(report: Report) -> str:
    """For example "Not decided between topk and batchtopk"; "No difference found" is used for arms that are equal."""
    names = arms(report.frame)
    if not names:
        return "No trial has a result yet"
    if len(names) == 1:
        return f"One arm, {names[0]}: nothing to compare"
    if report.progress:
        return f"Nothing is decided yet: {report.progress}"
    pairs = [found[report.primary[0]] for found in report.judged if report.primary[0] in found]
    main = [c for c in pairs if not is_control(c.a) and not is_control(c.b)] or pairs
    groups = list(dict.fromkeys(c.group for c in main))
    if len(groups) > 1:
        return "; ".join(f"{group}: {_of(_in(main, group))}" for group in groups[:_MOST])
    return _of(main)


def _in(pairs: Sequence[Comparison], group: str) -> list[Comparison]:
    return [c for c in pairs if c.group == group]


def _of(pairs: Sequence[Comparison]) -> str:
    if not pairs or all(c.outcome == "not compared" for c in pairs):
        return "The arms could not be compared: they have no sparsity in common"
    return _pair(pairs[0]) if len(pairs) == 1 else _several(pairs)


def _pair(c: Comparison) -> str:
    """One pair of arms."""
    both = f"{c.a} and {c.b}"
    if a := c.winner:
        b = c.other(a)
        return (
            f"{a} reconstructs better than {b}" if c.metric == "fvu" else f"{a} is better than {b} in {label(c.metric)}"
        )
    return {
        "equal": f"No difference found between {both}: equal within {margin_text(c)}",
        "small": f"{both} differ by too little to matter",
        "same": f"{both} give the same results",
    }.get(c.outcome, f"Not decided between {both}")


def _several(pairs: Sequence[Comparison]) -> str:
    """Return which arm beats all others, which leads without that, or that none is distinguished or all are equal."""
    names = arms_of(pairs)
    wins = {name: [c for c in pairs if c.winner == name] for name in names}
    leader = max(names, key=lambda name: len(wins[name]))
    first = f"{leader} reconstructs" if pairs[0].metric == "fvu" else f"{leader} is"
    what = "" if pairs[0].metric == "fvu" else f" in {label(pairs[0].metric)}"
    if len(wins[leader]) == len(names) - 1:
        return f"{first} best{what} of {len(names)} arms"
    if not wins[leader]:
        shown = _list(names) if len(names) <= _MOST else number_of(len(names), "arm")
        equal = all(c.equal for c in pairs)
        return f"{'No difference found' if equal else 'Not decided'} between {shown}"
    beaten = [c.other(leader) for c in wins[leader]]
    rest = [name for name in names if name != leader and name not in beaten]
    if any(c.winner in rest and leader in (c.a, c.b) for c in pairs):
        return f"No arm is best: {leader} beats {_list(beaten)} and loses to others"
    return f"{first} better than {_list(beaten)}{what}; not told apart from {_list(rest)}"


def _list(names: Sequence[str]) -> str:
    shown = [*names[:_MOST], f"{len(names) - _MOST} others"] if len(names) > _MOST + 1 else list(names)
    return listed(shown)


def leaders(report: Report) -> list[Row]:
    """The best row of the table `best` for every level of sparsity (k and target_l0 of one value are one level),
    sparsest first; without controls."""
    rows = [row for row in report.table("best").rows() if not is_control(row["arm"])]
    levels: dict[tuple[str, str, float], list[Row]] = {}
    for row in rows:
        levels.setdefault(_level(row), []).append(row)
    choose = max if report.record.maximize else min
    return [choose(mine, key=lambda row: float(row["objective"])) for _, mine in sorted(levels.items())]


def _level(row: Row) -> tuple[str, str, float]:
    name = "k" if row["level_name"] in ("k", "target_l0") else row["level_name"] or ""
    level = float(row["level"]) if row["level"] is not None else math.nan
    return row["group"], name, level if math.isfinite(level) else 0.0


def standing(report: Report, leader: Row) -> str:
    """Return what is undecided about the leader of a level, by the verdict in FVU: "not decided", "equal within 0.5%",
    or nothing if it beats every other arm of that level."""
    rows = [row for row in report.table("best").rows() if _level(row) == _level(leader)]
    rivals = {row["arm"] for row in rows if not is_control(row["arm"])} - {leader["arm"]}
    of_group = [c for c in report.comparisons if c.group == leader["group"]]
    mine = [c for c in of_group if {c.a, c.b} in [{leader["arm"], rival} for rival in rivals]]
    left = [c for c in mine if c.winner != leader["arm"]]
    if not all(c.equal for c in left) or len(mine) < len(rivals):
        return "not decided"
    return f"equal within {margin_text(left[0])}" if left else ""
