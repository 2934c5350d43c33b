"""explain: which latents are related to a column of the data set, or to another corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.cli.latents import FORMATS, SUFFIXES, best_of, show, write
from saebench.cli.options import cache_option, out_option, runs_option
from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.latents.explained import Explained
    from saebench.report.table import Table


@click.command()
@click.argument("name", required=False, metavar="[SWEEP|TRIAL]")
@click.option("--target", "columns", multiple=True, metavar="COLUMN", help="A column of the data set; repeatable.")
@click.option(
    "--as",
    "kind",
    type=click.Choice(["auto", "class", "number"]),
    default="auto",
    help="Type of its values (default: auto).",
)
@click.option(
    "--contrast", type=click.Path(path_type=Path), metavar="FILE", help="Another corpus, as for encode --file."
)
@click.option("--column", metavar="NAME", help="Column of the texts in --contrast (default: the sweep's text_column).")
@click.option("--most", type=click.IntRange(min=1), default=10, help="Latents per target (default: 10).")
@click.option("--format", "form", type=click.Choice(FORMATS), help="Default: by --out's suffix, else table.")
@out_option
@click.option("--build", is_flag=True, help="Encode the texts again if the cache lacks them.")
@cache_option
@runs_option
def explain(
    name: str | None,
    columns: tuple[str, ...],
    kind: Any,
    contrast: Path | None,
    column: str | None,
    most: int,
    form: str | None,
    out: Path | None,
    build: bool,
    cache_dir: str | None,
    runs_dir: str | None,
) -> None:
    """Show which latents are related to a column of labels or numbers.

    Latents are ranked on training texts; effects, intervals and p (Holm) are measured on the test part and compared
    with other seeds. The target is a column of the data set (classes or numbers), or another corpus (--contrast).
    """
    from saebench.latents import analyse
    from saebench.latents.explained import explain_columns, explain_contrast
    from saebench.latents.find import trials
    from saebench.latents.read_texts import read_texts

    if bool(columns) == (contrast is not None):
        raise UserError("give --target or --contrast, one of the two")
    form = form or (SUFFIXES.get(out.suffix.lower(), "table") if out else "table")
    found = []
    for trial in trials(name, runs_dir, best_of):
        one = analyse(trial, cache_dir=cache_dir, build=build)
        if contrast is None:
            found.append(explain_columns(one, columns, kind=kind, cache_dir=cache_dir, most=most))
        else:
            texts = read_texts(contrast, column or trial.config.data.dataset.text_column)
            found.append(explain_contrast(one, contrast.name, texts, cache_dir=cache_dir, most=most))
    for note in dict.fromkeys(note for one in found for note in one.notes):
        click.echo(f"note: {note}", err=True)
    if form == "html":
        from saebench.latents.explained_page import explained_page

        if len(found) > 1:
            names = ", ".join(one.latents.trial.name for one in found)
            raise UserError(f"--format html holds one trial; give one of the best of each stratum: {names}")
        write(out or found[0].latents.trial.folder / "explain.html", explained_page(found[0]))
    else:
        show([_table(found)], form, out)


def _table(found: list[Explained]) -> Table:
    from saebench.cli.latent_tables import LATENT
    from saebench.latents.explained_page import METHOD
    from saebench.latents.visible import visible
    from saebench.report.table import Column, decimals, make, p_value, percentage

    columns = [
        *([Column("trial", "trial")] if len(found) > 1 else []),
        Column("target", "target", lambda row: visible(row["target"], 50)), LATENT,
        Column("keywords", "keywords", lambda row: visible(row["keywords"], 60) or "-"),
        Column("ranked", "training", decimals("ranked", 3), drop=3),
        Column("effect", "effect (95%)", lambda row: f"{row['effect']:.3f} ({row['low']:.3f} to {row['high']:.3f})"),
        Column("p_holm", "p (Holm)", lambda row: p_value(row["p_holm"])),
        Column("inside", "fires inside", lambda row: percentage(row["inside"])),
        Column("outside", "outside", lambda row: percentage(row["outside"])),
        Column("path", "path", drop=2),
        Column("confirmed", "seeds", lambda row: f"{row['confirmed']} of {row['seeds']}" if row["seeds"] else "-"),
        Column("texts", "text", lambda row: visible((row["texts"] or [""])[0], 50), drop=1),
    ]  # fmt: skip
    return make("explain", "Latents and targets", [row for one in found for row in one.rows()], columns, METHOD)
