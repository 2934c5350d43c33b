"""Charts as SVG text for the page: colours come from its style sheet, tips from its script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape

from saebench.report.chart import DASHES, MARKERS, Chart, Panel, Series, limits, tick_label, ticks, x_ticks

WIDTH, HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 26, 46
_PARALLEL = 150
"""Width per axis of parallel coordinates."""
Place = Callable[[float], float]

_SHAPES = {
    "circle": '<circle r="4.5"/>',
    "square": '<rect x="-4" y="-4" width="8" height="8"/>',
    "triangle": '<path d="M0-5.2 4.8 3.8H-4.8Z"/>',
    "diamond": '<path d="M0-5.6 5.6 0 0 5.6-5.6 0Z"/>',
    "cross": '<path d="M-4-2 -2-4 0-2 2-4 4-2 2 0 4 2 2 4 0 2-2 4-4 2-2 0Z"/>',
    "plus": '<path d="M-1.7-5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z"/>',
    "star": '<path d="M0-5.8 1.5-1.9 5.6-1.7 2.4.9 3.5 4.9 0 2.6-3.5 4.9-2.4.9-5.6-1.7-1.5-1.9Z"/>',
}


def markers() -> str:
    """The marker shapes, once per page."""
    shapes = "".join(f'<g id="mark{i}">{_SHAPES[name]}</g>' for i, name in enumerate(MARKERS))
    return f'<svg width="0" height="0" aria-hidden="true" class="defs"><defs>{shapes}</defs></svg>'


def chart(chart: Chart) -> str:
    """The legend and every panel."""
    legend = "".join(f"<li>{_key(arm, dash)}{escape(label)}</li>" for label, arm, dash in chart.legend)
    panels = "".join(_parallel(chart, p) if p.axes else _panel(chart, p) for p in chart.panels)
    kind = "parallel" if chart.panels[0].axes else "one" if len(chart.panels) == 1 else "many"
    return f'<ul class="legend">{legend}</ul><div class="panels {kind}">{panels}</div>'


def _key(arm: int, dash: int) -> str:
    line = f'<line x1="1" x2="27" y1="7" y2="7"{_dashes(dash)}/>'
    mark = f'<use href="#mark{arm % len(MARKERS)}" x="14" y="7"/>' if arm >= 0 else ""
    return (
        f'<svg viewBox="0 0 28 14" width="28" height="14" aria-hidden="true" class="{_colour(arm)}">{line}{mark}</svg>'
    )


def _colour(arm: int) -> str:
    return f"arm{arm % len(MARKERS)}" if arm >= 0 else "neutral"


def _dashes(dash: int) -> str:
    pattern = DASHES[dash % len(DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def _scale(low: float, high: float, start: float, end: float, log: bool) -> Place:
    if log:
        low, high = math.log(low), math.log(high)
        return lambda value: start + (math.log(value) - low) / (high - low) * (end - start) if value > 0 else start
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _panel(chart: Chart, panel: Panel) -> str:
    x_low, x_high, y_low, y_high = limits(panel)
    x = _scale(x_low, x_high, _LEFT, WIDTH - _RIGHT, panel.x_log)
    y = _scale(y_low, y_high, HEIGHT - _BOTTOM, _TOP, panel.y_log)
    parts = [*_frame(panel, x, y, x_ticks(panel, x_low, x_high), ticks(y_low, y_high, panel.y_log))]
    parts += [part for series in panel.series for part in _series(series, x, y)]
    return _svg(chart, panel, WIDTH, HEIGHT, parts)


def _svg(chart: Chart, panel: Panel, width: float, height: float, parts: Sequence[str]) -> str:
    name = escape(f"{chart.title}{': ' if panel.title else ''}{panel.title}")
    return f'<svg class="plot" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _frame(panel: Panel, x: Place, y: Place, x_at: Sequence[float], y_at: Sequence[float]) -> Iterator[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    yield f'<text class="title" x="{_LEFT}" y="15">{escape(panel.title)}</text>'
    for value in x_at:
        yield f'<line class="grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{_TOP}" y2="{bottom}"/>'
        yield f'<text class="tick" x="{x(value):.1f}" y="{bottom + 15}" text-anchor="middle">{tick_label(value)}</text>'
    for value in y_at:
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{tick_label(value)}</text>'
    yield f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>'
    centre, middle = (_LEFT + right) / 2, (_TOP + bottom) / 2
    yield f'<text class="label" x="{centre:g}" y="{HEIGHT - 10}" text-anchor="middle">{escape(panel.x)}</text>'
    yield (
        f'<text class="label" x="13" y="{middle:g}" text-anchor="middle" transform="rotate(-90 13 {middle:g})">'
        f"{escape(panel.y)}</text>"
    )


def _series(s: Series, x: Place, y: Place) -> Iterator[str]:
    """Line or outline, then intervals, then the marks; one tip for the whole line, or one per mark."""
    colour, faint = _colour(s.arm), " faint" if s.faint else ""
    places = [(x(u), y(v)) for u, v in zip(s.x, s.y, strict=True)]
    marked = s.marked or s.kind == "points"
    if s.kind != "points" and len(places) > 1:
        path = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in places)
        kind = "front" if s.arm < 0 else "steps" if s.kind == "steps" else "line"
        yield f'<path class="{kind} {colour}{faint}" d="{path}"{_dashes(s.dash)}/>'
        if s.tips and not marked:
            yield f'<path class="hit" d="{path}"{_tip(s.tips[0])}/>'
    for (u, _), low, high in zip(places, s.low, s.high, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            top, end = y(high), y(low)
            bar = f"M{u:.1f} {top:.1f}V{end:.1f}M{u - 3:.1f} {top:.1f}h6M{u - 3:.1f} {end:.1f}h6"
            yield f'<path class="bar {colour}" d="{bar}"/>'
    if s.ends and places:
        u, v = places[-1]
        tip = _tip(s.tips[0]) if s.tips else ""
        yield f'<path class="end {colour}" d="M{u - 3:.1f} {v - 3:.1f}l6 6m0-6l-6 6"{tip}/>'
    if marked:
        mark = s.arm % len(MARKERS)
        for (u, v), tip in zip(places, s.tips, strict=False):
            place = f"translate({u:.1f} {v:.1f}){' scale(.6)' if s.faint else ''}"
            yield f'<use class="mark {colour}{faint}" href="#mark{mark}" transform="{place}"{_tip(tip)}/>'


def _tip(text: str) -> str:
    return f' data-tip="{escape(text)}"' if text else ""


def _parallel(chart: Chart, panel: Panel) -> str:
    width, height = _PARALLEL * len(panel.axes), HEIGHT + 20
    top, bottom = 34, height - 12
    x = _scale(0, 1, 14, 14 + _PARALLEL, False)
    y = _scale(0, 1, bottom, top, False)
    parts = [part for series in panel.series for part in _series(series, x, y)]
    for i, axis in enumerate(panel.axes):
        parts.append(f'<path class="axis" d="M{x(i):.1f} {top}V{bottom}"/>')
        parts.append(f'<text class="title" x="{x(i) - 8:.1f}" y="18">{escape(axis.title)}</text>')
        parts += [
            f'<text class="tick halo" x="{x(i) + 5:.1f}" y="{y(at) + 4:.1f}">{escape(label)}</text>'
            for at, label in axis.ticks
        ]
    return _svg(chart, panel, width, height, parts)
