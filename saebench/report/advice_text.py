"""The advice of a report as text, as a chart, and as the YAML of the next sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

import yaml

from saebench.report.advice import ALONG, Advice, Curve, advise, curves
from saebench.report.advice_spec import next_spec
from saebench.report.chart import Chart, Panel, Series, at_values

if TYPE_CHECKING:
    from saebench.report.document import Report


def advice(report: Report, *, quick: bool = False) -> tuple[Advice, list[Curve]]:
    """Return the advice from the report's curves. `quick`: with the stability that is cached or takes seconds."""
    table = report.quick_stability if quick else report.stability
    found = curves(report.by_level[1], table.rows())
    return advise(found), found


def text(report: Report, *, quick: bool = False) -> str:
    """Return the lines, and the spec of the next sweep if this sweep's spec is known."""
    said, _ = advice(report, quick=quick)
    lines = [f"- {line}" for line in said.lines]
    if said.l0 is None:
        lines += ["Which k: the data do not decide it.", *(f"- {why}" for why in said.silent)]
    spec = spec_text(report, said)
    return "\n".join([*lines, *(["", "The next sweep (save it, then: saebench plan FILE):", "", spec] if spec else [])])


def spec_text(report: Report, said: Advice) -> str:
    """The YAML of the next sweep; "" for reports of several sweeps, or of one whose spec is missing or damaged."""
    specs = [source.lock.get("spec") for source in report.record.sources]
    if len(specs) != 1 or not isinstance(specs[0], dict):
        return ""
    try:
        following = next_spec(specs[0], said)
    except (KeyError, TypeError, AttributeError, ValueError):  # lock.json comes from a disk: it may hold anything
        return ""
    return yaml.safe_dump(following, sort_keys=False, allow_unicode=True, default_flow_style=None)


def chart(report: Report, *, quick: bool = False) -> Chart:
    """Stability, c_dec, FVU and probing against L0, a line per arm and width."""
    said, found = advice(report, quick=quick)
    arms = list(dict.fromkeys(curve.arm for curve in found))
    widths = sorted({curve.width for curve in found})
    panels = []
    for metric, title in ALONG.items():
        series = []
        for curve in found:
            there = curve.of(metric)
            if len(there) > 1:
                x, y = [point.l0 for point, _ in there], [value for _, value in there]
                tips = [f"{curve.name}\nL0 {point.l0:.3g}: {title} {value:.4g}" for point, value in there]
                series.append(Series(curve.name, arms.index(curve.arm), "line", x, y, tips=tips,
                                     dash=widths.index(curve.width), marked=True))  # fmt: skip
        if series:
            at = at_values([point.level for curve in found for point in curve.points])
            panels.append(Panel(title, "L0", title, series, x_log=True, y_log=metric == "fvu", x_at=at))
    legend = [(arm, i, 0) for i, arm in enumerate(arms)]
    range_said = f" Advised: L0 {said.l0[0]:.2g} to {said.l0[1]:.2g}." if said.l0 else ""
    note = f"Metrics that indicate a good sparsity, against L0. FVU alone always favours more latents.{range_said}"
    return Chart("advice", "Which k, which width", note, panels, legend)
