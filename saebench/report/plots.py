"""Charts as PNG, SVG or PDF files, with matplotlib's object interface: no global state, no display."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saebench.errors import UserError
from saebench.report.chart import DASHES, PALETTE, Chart, Panel, Series, limits, tick_label, ticks, x_ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = ("o", "s", "^", "D", "X", "P", "*")
_GREY = "#8A8A8A"
_STYLE: Any = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#555555",
    "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelcolor": "#333333",
    "xtick.color": "#333333", "ytick.color": "#333333", "grid.color": "#E4E4E4", "grid.linewidth": 0.7,
    "svg.fonttype": "none", "svg.hashsalt": "saebench", "legend.frameon": False, "pdf.fonttype": 42,
}  # fmt: skip
_PAPER: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "grid.linewidth": 0.5,
}  # fmt: skip
"""Sizes for a figure that a paper prints at its own size."""
SUFFIXES = (".png", ".svg", ".pdf")


def save(chart: Chart, path: Path, width: float | None = None) -> None:
    """Draw into `path`; its suffix gives the format. `width`: in inches, for a paper: drawn at that size, without the
    title, which belongs in the caption. Raises UserError for another suffix or an empty chart."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: plots are written as {', '.join(SUFFIXES)}")
    if not chart.panels:
        raise UserError(f"{path}: nothing to draw for {chart.name!r}: no trial has the data for it")
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
    import matplotlib

    with matplotlib.rc_context(_STYLE if width is None else _STYLE | _PAPER):
        made = figure(chart, width)
        # "tight" would change the width that was asked for
        made.savefig(path, dpi=160 if width is None else 300, metadata=metadata,
                     bbox_inches="tight" if width is None else None)  # fmt: skip


def figure(chart: Chart, width: float | None = None) -> Figure:
    """The chart as a figure: panels in up to three columns (in `width` inches: a panel per 2.2), one legend below."""
    from matplotlib.figure import Figure

    most = 3 if width is None else max(1, int(width / _LEAST))
    across = min(most, len(chart.panels))
    down = math.ceil(len(chart.panels) / across)
    fig = Figure(figsize=_size(chart, across, down, width), layout="constrained")
    axes = fig.subplots(down, across, squeeze=False)
    for ax, panel in zip(axes.flat, chart.panels, strict=False):
        _parallel(ax, panel) if panel.axes else _panel(ax, panel)
    for ax in axes.flat[len(chart.panels) :]:
        ax.set_visible(False)
    if width is None:
        fig.suptitle(chart.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
    _legend(fig, chart)
    return fig


_LEAST = 2.2
"""Inches of a panel in a paper."""


def _size(chart: Chart, across: int, down: int, width: float | None) -> tuple[float, float]:
    """Width and height of the figure in inches."""
    if rows := chart.panels[0].rows:
        return width or 6.4, down * (0.26 * len(rows) + 0.75) + (0.4 if width is None else 0.2)
    if width is not None:
        ratio = 0.45 if chart.panels[0].axes else 0.72
        return width, ratio * width / across * down + 0.25
    if chart.panels[0].axes:
        return 9.0, 4.2 * down
    return (6.4, 4.4 * down) if across == 1 else (3.7 * across, 2.9 * down + 0.6)


def _legend(fig: Any, chart: Chart) -> None:
    from matplotlib.lines import Line2D

    marked = any(series.marked for panel in chart.panels for series in panel.series)
    handles = [
        Line2D([], [], color=_colour(arm), label=label, linestyle=_dash(dash), marker=_marker(arm) if marked else "",
               markersize=5)
        for label, arm, dash in chart.legend
    ]  # fmt: skip
    if handles:
        columns = max(1, min(len(handles), 6, int(fig.get_figwidth() / 1.05)))
        fig.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize="small")


def _panel(ax: Any, panel: Panel) -> None:
    x_low, x_high, y_low, y_high = limits(panel)
    for series in panel.series:
        _draw(ax, series)
    ax.set(xscale="log" if panel.x_log else "linear", yscale="log" if panel.y_log else "linear")
    ax.set(xlim=(x_low, x_high), ylim=(y_high, y_low) if panel.rows else (y_low, y_high))
    for axis, at in ((ax.xaxis, _thinned(panel, x_low, x_high)), (ax.yaxis, ticks(y_low, y_high, panel.y_log))):
        axis.set_ticks(at, [tick_label(v) for v in at])
        axis.set_ticks([], minor=True)
    if panel.rows:
        ax.set_yticks(range(len(panel.rows)), panel.rows)
    for value, text in panel.marks:
        ax.axvline(value, color="#333333", linewidth=0.9, linestyle="-" if value == 0 else ":", zorder=1)
        ax.annotate(text, (value, 1), xycoords=("data", "axes fraction"), xytext=(0, 3), textcoords="offset points",
                    ha="center", fontsize="x-small", color="#555555")  # fmt: skip
    ax.set_title(panel.title)
    ax.set_xlabel(panel.x)
    ax.set_ylabel(panel.y)
    ax.grid(True)
    ax.set_axisbelow(True)


def _thinned(panel: Panel, low: float, high: float) -> list[float]:
    """Return the labels of the x axis without those that would overlap the one before."""
    shown: list[float] = []
    for value in x_ticks(panel, low, high):
        near = math.log(value / shown[-1]) / math.log(high / low) if shown and panel.x_log else 1.0
        if near >= _APART:
            shown.append(value)
    return shown


_APART = 0.11
"""Share of the axis between two labels."""


def _draw(ax: Any, s: Series) -> None:
    from matplotlib.transforms import ScaledTranslation

    colour = _colour(s.arm)
    if s.kind == "bars":
        ax.barh(s.y, s.x, height=0.6, color=colour)
        return
    for x, y, low, high in zip(s.x, s.y, s.x_low, s.x_high, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            ax.errorbar([x], [y], xerr=[[x - low], [high - x]], color=colour, linewidth=1.2, capsize=2.5, zorder=3)
    if s.kind == "steps":
        ax.plot(s.x, s.y, color=colour, linewidth=1.3)
        ax.fill_between(s.x, s.y, color=colour, alpha=0.10, linewidth=0)
        return
    if s.kind == "points":
        size, alpha = (3.0, 0.35) if s.faint and not s.x_low else (6.0, 1.0)
        ax.plot(s.x, s.y, linestyle="", marker=_marker(s.arm) or "o", markersize=size, color=colour, alpha=alpha,
                markeredgewidth=0, zorder=4)  # fmt: skip
        return
    if s.arm < 0:
        ax.plot(s.x, s.y, color=colour, linewidth=7, alpha=0.18, solid_capstyle="round", zorder=1)
        return
    width, alpha = (0.8, 0.45) if s.faint else (1.6, 1.0)
    beside = ax.transData + ScaledTranslation(s.shift / 96, 0, ax.figure.dpi_scale_trans)  # s.shift: pixels, 96 an inch
    ax.plot(s.x, s.y, color=colour, linewidth=width, alpha=alpha, linestyle=_dash(s.dash), zorder=2 if s.faint else 3,
            transform=beside)  # fmt: skip
    if s.marked:
        ax.plot(
            s.x, s.y, _marker(s.arm), color=colour, markersize=6.5, markeredgecolor="white", zorder=4, transform=beside
        )
    for x, low, high in zip(s.x, s.low, s.high, strict=False):
        if math.isfinite(low) and math.isfinite(high):
            ax.errorbar([x], [(low + high) / 2], [(high - low) / 2], color=colour, linewidth=1.2, capsize=3, zorder=3,
                        transform=beside)  # fmt: skip
    if s.ends and len(s.x):
        ax.plot(s.x[-1:], s.y[-1:], marker="x", color=colour, markersize=4, alpha=0.8, linestyle="")


def _parallel(ax: Any, panel: Panel) -> None:
    from matplotlib import colormaps

    scale = colormaps["viridis"]
    for series in panel.series:
        colour = _colour(series.arm) if series.shade is None else scale(0.92 * series.shade)
        ax.plot(series.x, series.y, color=colour, linewidth=0.9, alpha=0.55)
    for i, axis in enumerate(panel.axes):
        ax.axvline(i, color="#555555", linewidth=0.8)
        for height, label in axis.ticks:
            ax.annotate(label, (i, height), xytext=(4, 0), textcoords="offset points", fontsize=7.5, va="center",
                        bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.75})  # fmt: skip
    ax.set_xticks(range(len(panel.axes)), [axis.title for axis in panel.axes])
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(panel.axes) - 0.5)
    ax.set_ylim(-0.04, 1.04)
    ax.set_title(panel.title)
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    ax.tick_params(axis="x", length=0, labelsize=9)


def _colour(arm: int) -> str:
    return PALETTE[arm % len(PALETTE)] if arm >= 0 else _GREY


def _marker(arm: int) -> str:
    return _MARKERS[arm % len(_MARKERS)] if arm >= 0 else ""


def _dash(dash: int) -> Any:
    pattern = DASHES[dash % len(DASHES)]
    return (0, tuple(float(part) for part in pattern.split())) if pattern else "-"
