"""Charts as SVG text for the page: colours come from its style sheet, tips from its script."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from saebench.report.chart import DASHES, MARKERS, Chart, Panel, Series, limits, tick_label, ticks, x_ticks

NARROW, WIDE = 350, 640
"""Pixels of a panel: of one of several, or on a phone; of one alone. Drawn at its own size, so that all text is equally
large."""
_LEFT, _RIGHT, _BOTTOM = 50, 14, 46
_PARALLEL = 118
"""Width per axis of parallel coordinates."""
_ROW, _LETTER = 30, 6.4
"""Height of a named row; width of a letter, about."""
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


def chart(chart: Chart, width: int = NARROW) -> str:
    """The legend and every panel, `width` pixels each."""
    legend = "".join(f"<li>{_key(arm, dash)}{escape(label)}</li>" for label, arm, dash in chart.legend)
    panels = "".join(_parallel(chart, p) if p.axes else _panel(chart, p, width) for p in chart.panels)
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


@dataclass(frozen=True)
class _Box:
    """Edges of the area in which data are drawn, and the size of all."""

    left: float
    top: float
    right: float
    bottom: float
    width: float
    height: float


def _box(panel: Panel, width: int) -> _Box:
    if panel.rows:
        longest = max(len(name) for name in panel.rows)
        left = min(_LETTER * longest + 14, 0.5 * width)
        top = 24.0 if panel.marks else 8.0
        bottom = top + _ROW * len(panel.rows)
        return _Box(left, top, width - _RIGHT, bottom, width, bottom + _BOTTOM)
    top = 44.0 if panel.title else 26.0
    height = 0.6 * width if width > NARROW else 0.74 * width
    return _Box(_LEFT, top + (12 if panel.marks else 0), width - _RIGHT, height - _BOTTOM + 16, width, height + 16)


def _panel(chart: Chart, panel: Panel, width: int) -> str:
    box = _box(panel, width)
    x_low, x_high, y_low, y_high = limits(panel)
    x = _scale(x_low, x_high, box.left, box.right, panel.x_log)
    y = _scale(y_low, y_high, *((box.top, box.bottom) if panel.rows else (box.bottom, box.top)), panel.y_log)
    parts = [*_frame(panel, box, x, y, x_ticks(panel, x_low, x_high), ticks(y_low, y_high, panel.y_log))]
    parts += [part for mark in panel.marks for part in _mark(mark, x(mark[0]), box)]
    parts += [part for series in panel.series for part in _series(series, x, y)]
    return _svg(chart, panel, box.width, box.height, parts)


def _svg(chart: Chart, panel: Panel, width: float, height: float, parts: Sequence[str]) -> str:
    name = escape(f"{chart.title}{': ' if panel.title else ''}{panel.title}")
    size = f'width="{width:g}" height="{height:g}" viewBox="0 0 {width:g} {height:g}"'
    return f'<svg class="plot" {size} role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _frame(panel: Panel, box: _Box, x: Place, y: Place, x_at: Sequence[float], y_at: Sequence[float]) -> Iterator[str]:
    if panel.title:
        yield f'<text class="title" x="2" y="15">{escape(panel.title)}</text>'
    free = -math.inf
    for value in x_at:
        at, label = x(value), tick_label(value)
        yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{box.top:g}" y2="{box.bottom:g}"/>'
        half = _LETTER * len(label) / 2 + 3
        if at - half >= free:  # a label that would run into the one before it is left out
            yield f'<text x="{at:.1f}" y="{box.bottom + 16:g}" text-anchor="middle">{label}</text>'
            free = at + half
    yield from _rows(panel, box, y) if panel.rows else _heights(box, y, y_at)
    left = "" if panel.rows else f"M{box.left:g} {box.top:g}V{box.bottom:g}"
    yield f'<path class="axis" d="{left}M{box.left:g} {box.bottom:g}H{box.right:g}"/>'
    centre = (box.left + box.right) / 2 if not panel.rows else box.width / 2
    yield f'<text class="label" x="{centre:g}" y="{box.bottom + 35:g}" text-anchor="middle">{escape(panel.x)}</text>'
    if panel.y:
        yield f'<text class="label" x="2" y="{32 if panel.title else 14}">{escape(panel.y)}</text>'


def _rows(panel: Panel, box: _Box, y: Place) -> Iterator[str]:
    """Names of rows, with a line below each."""
    for at, name in enumerate(panel.rows):
        yield f'<line class="grid" x1="2" x2="{box.right:g}" y1="{y(at + 0.5):.1f}" y2="{y(at + 0.5):.1f}"/>'
        most = int((box.left - 8) / _LETTER)
        shown = name if len(name) <= most + 1 else f"{name[: most - 1]}…"
        yield f'<text class="row" x="2" y="{y(at) + 4:.1f}">{escape(shown)}</text>'


def _heights(box: _Box, y: Place, at: Sequence[float]) -> Iterator[str]:
    for value in at:
        yield f'<line class="grid" x1="{box.left:g}" x2="{box.right:g}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        yield f'<text x="{box.left - 7:g}" y="{y(value) + 4:.1f}" text-anchor="end">{tick_label(value)}</text>'


def _mark(mark: tuple[float, str], at: float, box: _Box) -> Iterator[str]:
    """A vertical line and its label above it."""
    value, text = mark
    side = (
        "end" if at > (box.left + box.right) / 2 + 20 else "start" if at < (box.left + box.right) / 2 - 20 else "middle"
    )
    kind = "zero" if value == 0 else "limit"
    yield f'<path class="{kind}" d="M{at:.1f} {box.top - 3:g}V{box.bottom:g}"/>'
    yield f'<text class="note" x="{at:.1f}" y="{box.top - 8:g}" text-anchor="{side}">{escape(text)}</text>'


def _series(s: Series, x: Place, y: Place) -> Iterator[str]:
    """Line or outline, then intervals, then the marks; one tip for the whole line, or one per mark."""
    colour, faint = _colour(s.arm), " faint" if s.faint else ""
    places = [(x(u) + s.shift, y(v)) for u, v in zip(s.x, s.y, strict=True)]
    if s.kind == "bars":
        yield from _bars(s, x, y)
        return
    marked = s.marked or s.kind == "points"
    if s.kind != "points" and len(places) > 1:
        path = "M" + "L".join(f"{u:.1f} {v:.1f}" for u, v in places)
        kind = "shaded" if s.shade is not None else "front" if s.arm < 0 else "steps" if s.kind == "steps" else "line"
        shade = f' style="--s:{100 * (1 - s.shade):.0f}%"' if s.shade is not None else ""
        yield f'<path class="{kind} {colour}{faint}" d="{path}"{_dashes(s.dash)}{shade}/>'
        if s.tips and not marked:
            heights = f' data-h="{",".join(f"{v:.4g}" for v in s.y)}"' if s.shade is not None else ""
            yield f'<path class="hit" d="{path}"{heights}{_tip(s.tips[0])}/>'
    for (u, _), low, high in zip(places, s.low, s.high, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            top, end = y(high), y(low)
            bar = f"M{u:.1f} {top:.1f}V{end:.1f}M{u - 3:.1f} {top:.1f}h6M{u - 3:.1f} {end:.1f}h6"
            yield f'<path class="bar {colour}" d="{bar}"/>'
    for (_, v), start, stop in zip(places, s.x_low, s.x_high, strict=False):
        if math.isfinite(start) and math.isfinite(stop):
            yield f'<path class="bar {colour}{faint}" d="M{x(start):.1f} {v:.1f}H{x(stop):.1f}"/>'
            yield f'<path class="bar {colour}{faint}" d="M{x(start):.1f} {v - 4:.1f}v8M{x(stop):.1f} {v - 4:.1f}v8"/>'
    if s.ends and places:
        u, v = places[-1]
        tip = _tip(s.tips[0]) if s.tips else ""
        yield f'<path class="end {colour}" d="M{u - 3:.1f} {v - 3:.1f}l6 6m0-6l-6 6"{tip}/>'
    if marked:
        mark = max(0, s.arm) % len(MARKERS)
        for (u, v), tip in zip(places, s.tips, strict=False):
            place = f"translate({u:.1f} {v:.1f}){' scale(.6)' if s.faint else ''}"
            yield f'<use class="mark {colour}{faint}" href="#mark{mark}" transform="{place}"{_tip(tip)}/>'


def _bars(s: Series, x: Place, y: Place) -> Iterator[str]:
    """Rectangles from 0 on, with their value behind."""
    for value, row, tip in zip(s.x, s.y, s.tips, strict=True):
        wide = max(1.0, x(value) - x(0))
        size = f'x="{x(0):.1f}" y="{y(row) - 8:.1f}" width="{wide:.1f}" height="16"'
        yield f'<rect class="fill {_colour(s.arm)}" {size} rx="2"{_tip(tip)}/>'
        inside = x(0) + wide > x(value) - 44 and value > 60
        place = f'x="{x(value) + (-6 if inside else 6):.1f}" y="{y(row) + 4:.1f}"'
        kind, anchor = ("inside", ' text-anchor="end"') if inside else ("row", "")
        yield f'<text class="{kind}" {place}{anchor}>{value:.0f}%</text>'


def _tip(text: str) -> str:
    return f' data-tip="{escape(text)}"' if text else ""


def _parallel(chart: Chart, panel: Panel) -> str:
    """Axes side by side; the page's script lets a person select on them."""
    right = max((_LETTER * len(text) for _, text in panel.axes[-1].ticks), default=0.0) + 14
    width, height = 12 + _PARALLEL * (len(panel.axes) - 1) + right, 300.0
    top, bottom = 40.0, height - 12
    x = _scale(0, 1, 12, 12 + _PARALLEL, False)
    y = _scale(0, 1, bottom, top, False)
    parts = [part for series in panel.series for part in _series(series, x, y)]
    for i, axis in enumerate(panel.axes):
        at = f"{x(i):.1f}"
        parts.append(f'<path class="axis" d="M{at} {top:g}V{bottom:g}"/>')
        parts.append(f'<text class="title" x="{x(i) - 8:.1f}" y="24">{escape(axis.title)}</text>')
        parts += [
            f'<text class="halo" x="{x(i) + 6:.1f}" y="{y(at) + 4:.1f}">{escape(label)}</text>'
            for at, label in axis.ticks
        ]
        box = f'x="{x(i) - 16:.1f}" y="{top - 8:g}" width="32" height="{bottom - top + 16:g}"'
        edges = f'data-axis="{i}" data-top="{top:g}" data-bottom="{bottom:g}"'
        parts.append(f'<rect class="brush" {box} {edges}/>')
    return _svg(chart, panel, width, height, parts)
