"""latents: what the latents of a trial mean, as tables and as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.cli.options import cache_option, out_option, runs_option
from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.latents import Latents
    from saebench.report.table import Table

FORMATS = ("table", "csv", "markdown", "json", "html", "latex", "parquet")
SUFFIXES = {".csv": "csv", ".md": "markdown", ".json": "json", ".html": "html", ".tex": "latex", ".parquet": "parquet"}
TABLES = ("latents", "trials", "scores", "judged", "labels")
_PIPED_WIDTH = 160


@click.command()
@click.argument("name", required=False, metavar="[SWEEP|TRIAL]")
@click.option("--format", "kind", type=click.Choice(FORMATS), help="Default: by --out's suffix, else table.")
@out_option
@click.option("--table", type=click.Choice(TABLES), default="latents", help="Which table (default: latents).")
@click.option(
    "--part", type=click.Choice(["test", "validation", "train"]), default="test", help="Texts (default: test)."
)
@click.option(
    "--text", "texts", multiple=True, metavar="TEXT", help="Show the latents that fire on this text; repeatable."
)
@click.option("--against", metavar="TRIAL", help="Compare with the latents of this trial, one by one.")
@click.option("--second", metavar="MODEL", help="Second encoder, for example AUROC (--table scores).")
@click.option("--circular-anyway", is_flag=True, help="Allow the SAE's own encoder as the second one.")
@click.option("--map", "plan", type=click.Choice(["pca", "umap"]), default="pca", help="How the page's map is drawn.")
@click.option("--build", is_flag=True, help="Encode the texts again if the cache lacks them.")
@cache_option
@runs_option
def latents(
    name: str | None,
    kind: str | None,
    out: Path | None,
    table: str,
    part: str,
    texts: tuple[str, ...],
    against: str | None,
    second: str | None,
    circular_anyway: bool,
    plan: str,
    build: bool,
    cache_dir: str | None,
    runs_dir: str | None,
) -> None:
    """Show what latents mean: texts, keywords, families.

    TRIAL is SWEEP/NUMBER, its directory, or a folder that `saebench export` wrote; for a SWEEP (default: the newest)
    the best trial of each stratum is taken. html is a page of one trial; docs/latents.md describes json.
    """
    from saebench.cli import latent_tables as tables
    from saebench.latents import analyse
    from saebench.latents.find import trials

    kind = kind or (SUFFIXES.get(out.suffix.lower(), "table") if out else "table")
    chosen = trials(name, runs_dir, best_of)
    other = trials(against, runs_dir, best_of)[0] if against else None
    if kind in ("html", "json") and len(chosen) > 1 and table == "latents":
        names = ", ".join(trial.name for trial in chosen)
        raise UserError(f"--format {kind} holds one trial; give one of the best of each stratum: {names}")
    analyses = [analyse(trial, part, against=other, cache_dir=cache_dir, build=build) for trial in chosen]
    for one in analyses:
        one.plan = plan
        for note in one.notes if kind != "html" else []:
            click.echo(f"note: {one.trial.name}: {note}", err=True)
    fired = _fired(analyses[0], texts)
    if texts and kind not in ("html", "json"):
        show([tables.fired_table(analyses[0], text, values) for text, values in fired], kind, out)
    elif table in ("scores", "judged", "labels"):
        show([tables.scores(analyses, table, second, circular_anyway, cache_dir, build)], kind, out)
    elif kind == "html":
        from saebench.latents.page import page

        out = out or analyses[0].trial.folder / "latents.html"
        write(out, page(analyses[0], fired))
    elif kind == "json" and table == "latents":
        _write_json(analyses[0], out)
    else:
        whole = kind != "table" or out is not None
        show([tables.trials(analyses) if table == "trials" else tables.latents(analyses, whole)], kind, out)


def best_of(sweep: str | None, runs_dir: str | None) -> list[Path]:
    """Return the directories of the best complete trials of a sweep, one per stratum."""
    from saebench.report import load

    document = load(*([sweep] if sweep else []), runs_dir=runs_dir)
    paths = {source.name: source.paths for source in document.record.sources}
    frame = document.table("best").frame
    if not len(frame):
        raise UserError(f"{document.name}: no complete trial")
    rows = zip(frame["sweep"], frame["best_trial"], strict=True)
    return [there.trial(int(n)).root for sweep_name, n in rows if (there := paths[sweep_name]) is not None]


def _fired(one: Latents, texts: Sequence[str]) -> list[tuple[str, dict[int, float]]]:
    """Return per text the latents that fire on it, strongest first."""
    if not texts:
        return []
    from saebench.latents.encode import Encoder

    codes = Encoder(one.trial).encode(texts)
    found = []
    for i, text in enumerate(texts):
        which, values = codes.row(i)
        pairs = zip(which.tolist(), values.tolist(), strict=True)
        found.append((text, dict(sorted(pairs, key=lambda pair: -abs(pair[1])))))
    return found


# --- out -------------------------------------------------------------------------------------------------------------


def show(tables: Sequence[Table], kind: str, out: Path | None) -> None:
    from saebench.report import formats, latex

    if kind == "table":
        _print(tables, out)
    elif kind == "parquet":
        if out is None or len(tables) > 1:
            raise UserError("--format parquet holds one table and needs --out FILE")
        out.parent.mkdir(parents=True, exist_ok=True)
        formats.parquet(tables[0], out)
        click.echo(f"written: {out}", err=True)
    elif kind == "html":
        raise UserError("--format html is the page of a trial's latents: without --table")
    else:
        show = {"csv": formats.csv, "json": formats.to_json, "markdown": formats.markdown_table,
                "latex": latex.longtable}[kind]  # fmt: skip
        text = "\n".join(show(table) for table in tables)
        click.echo(text, nl=False) if out is None else write(out, text)


def _print(tables: Sequence[Table], out: Path | None) -> None:
    import io

    from saebench.report.rich_tables import left_out, rich_table
    from saebench.terminal.console import make_console

    file = io.StringIO() if out else None
    console = make_console(file, piped_width=_PIPED_WIDTH, markup=True)  # rich_table escapes its cells
    for table in tables:
        if len(table.frame):
            console.print(rich_table(table, console.width))
        else:
            console.print(f"{table.title}: none", markup=False)
        if note := " ".join(filter(None, (table.note, left_out(table, console.width)))):
            console.print(note, style="dim", markup=False)
    if out and file:
        write(out, file.getvalue())


def write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from error
    click.echo(f"written: {out}", err=True)


def _write_json(one: Latents, out: Path | None) -> None:
    import io

    from saebench.latents.export import write_json

    text = io.StringIO()
    write_json(one, text)
    click.echo(text.getvalue(), nl=False) if out is None else write(out, text.getvalue())
