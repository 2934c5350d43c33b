"""report: the results of a sweep as text, files, plots and a page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.cli.browser import open_page
from saebench.cli.complete import complete_sweeps
from saebench.cli.options import out_option, runs_option, uri_option, where_option
from saebench.cli.output import echo
from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.report.document import Report
    from saebench.report.table import Table

FORMATS = ("table", "csv", "markdown", "json", "html", "latex", "parquet")
SUFFIXES = {".csv": "csv", ".md": "markdown", ".markdown": "markdown", ".json": "json", ".html": "html", ".htm": "html",
            ".tex": "latex", ".latex": "latex", ".parquet": "parquet", ".txt": "table"}  # fmt: skip
NAMES = ("metrics", "verdict", "strata", "arms", "pareto", "best", "floors", "fidelity", "probing", "stability",
         "texts", "seeds", "effects", "importances", "lost", "trials")  # fmt: skip
"""report.TABLES, spelled out so that --help needs no pandas; a test compares."""
PLOTS = ("pareto", "forest", "curves", "lr", "dead", "density", "l0", "importance", "parallel")
"""report.charts.CHARTS, likewise."""


@click.command()
@click.argument("sweeps", nargs=-1, metavar="[SWEEP]...", shell_complete=complete_sweeps)
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: by --out's suffix, else table.")
@out_option
@click.option("--table", "names", multiple=True, type=click.Choice([*NAMES, "all"]), help="Only these tables.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Write a plot (.png, .svg, .pdf).")
@click.option("--chart", default="pareto", type=click.Choice([*PLOTS, "all"]), help="Which plot (default: pareto).")
@click.option("--width", metavar="LENGTH", help="Width of --plot, for a paper: 3.3in, 84mm, 240pt; no title.")
@click.option("--open", "browse", is_flag=True, help="Write the page (html) and open it in a browser.")
@click.option("--watch", is_flag=True, help="Update the page until the sweep ends, or Ctrl-C.")
@click.option("--advise", is_flag=True, help="Print advice on k and width, and a spec for the next sweep.")
@click.option("--all", "--full", "everything", is_flag=True, help="Print all tables; by default what fits a screen.")
@click.option("--log", is_flag=True, help="Attach the page and all plots to the sweep's run in MLflow.")
@where_option
@runs_option
@uri_option
def report(
    sweeps: tuple[str, ...],
    kind: str | None,
    out: Path | None,
    names: tuple[str, ...],
    plot: Path | None,
    chart: str,
    width: str | None,
    browse: bool,
    watch: bool,
    advise: bool,
    everything: bool,
    log: bool,
    where: tuple[str, ...],
    runs_dir: str | None,
    tracking_uri: str | None,
) -> None:
    """Report the results of SWEEP: verdict, tables, plots.

    SWEEP is a name or a directory, the newest by default; several are reported together. csv, json and parquet contain
    one table (default: trials, a row per trial) with raw numbers, the other formats the whole report; latex with
    --table is that table as a float for a paper. How to read it: docs/report.md.
    """
    from saebench.report import load

    kind = kind or (_kind_of(out) if out else "html" if browse or watch else "table")
    if (browse or watch) and kind != "html":
        raise UserError(f"{'--watch' if watch else '--open'} shows the page: --format html, not {kind}")
    if width and not plot:
        raise UserError("--width is the width of a plot: give --plot FILE, too")
    if watch:
        from saebench.cli.watch import watch_page

        watch_page(sweeps, out, browse, partial(load, runs_dir=runs_dir, tracking_uri=tracking_uri, where=where))
        return
    document = load(*sweeps, runs_dir=runs_dir, tracking_uri=tracking_uri, where=where)
    if advise:
        _advise(document, plot)
        return
    if plot:
        drawn = _plots(document, plot, chart, inches(width) if width else None)
        for path in drawn.values():
            echo(f"plot: {path}", err=True)
        if missing := [name for name in PLOTS if chart == "all" and name not in drawn]:
            why = f"nothing to draw for {', '.join(missing)}: no trial has the data"
            if not drawn:
                raise UserError(f"{plot}: {why}")
            echo(why, err=True)
    if not plot or out or names or browse:
        written = _write(document, kind, out, tuple(NAMES) if "all" in names else names, everything or out is not None)
        if browse and written and not open_page(written.absolute().as_uri()):
            echo("no browser was found: open that file yourself", err=True)
    if log:
        echo(f"attached to MLflow: {', '.join(_log(document))}", err=True)
    if kind not in ("table", "markdown", "latex", "html"):
        for note in document.record.notes:
            echo(f"note: {note}", err=True)


def _advise(document: Report, plot: Path | None) -> None:
    from saebench.report.advice_text import chart, text
    from saebench.report.plots import save

    if plot:
        with _writing(plot):
            save(chart(document), plot)
        echo(f"plot: {plot}", err=True)
    echo(text(document))


def _kind_of(out: Path) -> str:
    """Return the format of a file's suffix; raise UserError for an unknown one."""
    kind = SUFFIXES.get(out.suffix.lower())
    if kind is None:
        raise UserError(
            f"--out {out}: unknown suffix {out.suffix or '(none)'}; use one of "
            f"{', '.join(SUFFIXES)}, or give --format; for a plot use --plot FILE"
        )
    return kind


_UNITS = {"in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}
"""Unit of a length -> inches; TeX's points."""


def inches(length: str) -> float:
    """Return a length such as 3.3in or 84mm in inches. Raises UserError if it is not the width of a figure."""
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt)?", length.strip())
    value = float(found[1]) * _UNITS[found[2] or "in"] if found else 0.0
    if not 1 <= value <= 40:
        raise UserError(f"--width {length}: not a width from 1 to 40 inches, such as 3.3in, 84mm or 240pt")
    return value


def _plots(document: Report, path: Path, chart: str, width: float | None = None) -> dict[str, Path]:
    """Write every chart that has data; return name -> file."""
    from saebench.report.charts import CHARTS
    from saebench.report.plots import save

    if chart != "all":
        with _writing(path):
            save(CHARTS[chart](document), path, width)
        return {chart: path}
    drawn = {}
    for name in PLOTS:
        if (made := CHARTS[name](document)).panels:
            drawn[name] = path.with_stem(f"{path.stem}-{name}")
            with _writing(drawn[name]):
                save(made, drawn[name], width)
    return drawn


def _write(document: Report, kind: str, out: Path | None, names: tuple[str, ...], everything: bool) -> Path | None:
    """Write or print; return the file, if one was written."""
    if kind == "table":
        _print_tables(document, out, names, everything)
        return out
    if kind in ("csv", "json", "parquet") and len(names) > 1:
        raise UserError(f"--format {kind} holds one table; give one --table")
    if kind == "parquet" or (kind == "html" and out is None):
        out = out or _default_file(document, kind)
    if kind == "parquet" and out:
        from saebench.report.formats import parquet

        with _writing(out):
            parquet(document.table(names[0] if names else "trials"), out)
    else:
        _emit(_text(document, kind, names), out)
    if out:
        echo(f"written: {out}", err=True)
    return out


def _text(document: Report, kind: str, names: tuple[str, ...]) -> str:
    from saebench.report import formats, latex

    if kind == "html":
        from saebench.report.html import page

        return page(document, quick="stability" not in names)
    if kind in ("csv", "json"):
        table = document.table(names[0] if names else "trials")
        return formats.csv(table) if kind == "csv" else formats.to_json(table)
    tables = [document.table(name, quick=not names) for name in names or NAMES]
    if kind == "markdown":
        return formats.markdown(document, tables)
    if names:  # to put into a paper
        return "\n".join(latex.floating(document, table) for table in tables)
    return latex.document(document, tables)


def _print_tables(document: Report, out: Path | None, names: tuple[str, ...], everything: bool) -> None:
    from saebench.report.text import show
    from saebench.terminal.console import make_console

    tables: list[Table] | None = [document.table(name) for name in names] if names else None
    if out is None:
        show(document, make_console(markup=True), tables, everything=everything)
        return
    with _writing(out), out.open("w", encoding="utf-8") as file:
        show(document, make_console(file, markup=True), tables, everything=everything)
    echo(f"written: {out}", err=True)


def _emit(text: str, out: Path | None) -> None:
    if out is None:
        echo(text, nl=False)
    else:
        with _writing(out):
            out.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[None]:
    """Write a file and its folder. Raises UserError if the disk refuses."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror or error}") from error


def _default_file(document: Report, kind: str) -> Path:
    paths = document.record.sources[0].paths
    if paths is None:
        raise UserError(f"--format {kind} needs --out FILE: this sweep has no directory here")
    return paths.report / ("report.html" if kind == "html" else "trials.parquet")


def _log(document: Report) -> list[str]:
    """Write the verdict, the page and every plot to the run of each sweep."""
    import tempfile

    from saebench.report.publish import publish

    with tempfile.TemporaryDirectory() as folder:
        _plots(document, Path(folder, "plot.png"), "all")
        return publish(document, Path(folder))
