"""Controls, and the metrics in which an arm beats its control."""

from __future__ import annotations

from saebench.report.comparison import CONCLUSIVE, Comparison
from saebench.report.judge import Judged, label
from saebench.report.points import CONTROLS
from saebench.report.verdict import what_would_decide
from saebench.report.wording import difference_text, listed


def is_control(arm: str) -> bool:
    """Return whether this arm is a control (such as `control: frozen_decoder`)."""
    return any(f"({name})" in arm for name in CONTROLS.values())


def is_control_of(control: str, arm: str) -> bool:
    """Return whether `control` is the control of `arm`."""
    return is_control(control) and not is_control(arm) and control.partition(" (")[0] == arm.partition(" ")[0]


def is_of_interest(a: str, b: str) -> bool:
    """Return whether these are two ordinary arms, or an arm and its control; other pairs are only in the tables."""
    return not (is_control(a) or is_control(b)) or is_control_of(a, b) or is_control_of(b, a)


def any_of(found: Judged) -> Comparison:
    return next(iter(found.values()))


def against_control(found: Judged) -> str:
    """Return the sentence on the metrics in which an arm beats its control."""
    c = any_of(found)
    arm, control = (c.b, c.a) if is_control(c.a) else (c.a, c.b)
    if c.outcome == "so far":
        return ""
    beats = [f"{label(n)} ({difference_text(one, one.mean_of(arm))})"
             for n, one in found.items() if one.winner == arm]  # fmt: skip
    open_ = [label(n) for n, one in found.items() if one.outcome == "undecided"]
    fails = [label(n) for n, one in found.items() if one.winner != arm and one.outcome in CONCLUSIVE]
    its = f"its control ({next(name for name in CONTROLS.values() if f'({name})' in control)})"
    rest = f", not in {listed(fails)}" * bool(fails) + f"; undecided in {listed(open_)}" * bool(open_)
    if beats:
        return f"{arm} beats {its} in {listed(beats)}{rest}"
    if not open_:
        return f"{arm} does not beat {its} in any metric"
    why = f": {what_would_decide(c)}" if c.outcome == "undecided" else ""
    return f"{arm} is not shown to beat {its} in any metric{why}"
