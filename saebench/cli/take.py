"""best, export: get the SAEs of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.cli.complete import complete_sweeps, complete_trials
from saebench.cli.options import runs_option, uri_option, where_option
from saebench.cli.output import echo

if TYPE_CHECKING:
    from saebench.report.document import Report


@click.command()
@click.argument("sweep", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@where_option
@click.option("--register", metavar="NAME", help="Register the best trial's SAE in MLflow's model registry.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@runs_option
@uri_option
def best(
    sweep: str | None,
    where: tuple[str, ...],
    register: str | None,
    as_json: bool,
    runs_dir: str | None,
    tracking_uri: str | None,
) -> None:
    """Show the best trial of SWEEP per arm and sparsity.

    The best of all comes first. FVU falls as L0 grows, so compare at one level: --where level=32 (the arm's k or
    target_l0; other columns: type=batchtopk, dict_size=3072, ...).
    """
    from saebench.report import formats, load, pick
    from saebench.report.rich_tables import rich_table
    from saebench.report.table import Table
    from saebench.terminal.console import make_console

    document = load(*([sweep] if sweep else []), runs_dir=runs_dir, tracking_uri=tracking_uri, where=where)
    rows = pick.best(document)
    shown = document.table("best")
    table = Table(shown.name, shown.title, rows, shown.columns, shown.note)
    if as_json:
        echo(formats.to_json(table), nl=False)
    else:
        console = make_console(markup=True)
        console.print(rich_table(table, console.width))
        echo(_best_of_all(document, table.rows()[0]))
    if register:
        version, what = pick.register(document, table.rows()[0], register)
        echo(f"registered {what} as {register}, version {version}", err=True)
        if len(rows) > 1:
            echo(f"note: it is the best of {len(rows)} levels of arm and sparsity; --where narrows", err=True)


def _best_of_all(document: Report, row: dict[str, Any]) -> str:
    """Return the line about the best trial and how it was chosen; for a verdict, which takes longer, run report."""
    from saebench.report.table import number_of

    source = next(s for s in document.record.sources if s.name == row["sweep"])
    place = f"; {source.paths.trial(row['best_trial']).sae}" if source.paths else ""
    what = f"{row['arm']}, {row['level_name']}={row['level']:g}, n={row['dict_size']:g}"
    so_far = f" so far ({document.progress}: nothing is decided)" if document.progress else ""
    most = "highest" if document.record.maximize else "least"
    over = "mean over " if row["seeds"] > 1 else ""
    by = f"{most} {document.record.objective} {row['objective']:.4f}, {over}{number_of(row['seeds'], 'comparing seed')}"
    verdict = f"; whether arms differ: saebench report {document.name}" if document.frame["arm"].nunique() > 1 else ""
    return f"best{so_far}: {row['sweep']}/{row['best_trial']} ({what}; {by}){place}{verdict}"


@click.command()
@click.argument("trial", shell_complete=complete_trials)
@click.option("--to", required=True, type=click.Path(path_type=Path), metavar="DIR", help="A new or empty folder.")
@click.option(
    "--format",
    "kind",
    default="saebench",
    type=click.Choice(["saebench", "saelens", "dictionary_learning"]),
    help="File layout (default: saebench: sae.safetensors and sae.json).",
)
@runs_option
@uri_option
def export(trial: str, to: Path, kind: Any, runs_dir: str | None, tracking_uri: str | None) -> None:
    """Copy the SAE of TRIAL out of its sweep.

    TRIAL is SWEEP/NUMBER, a trial's directory, or an MLflow run id.
    """
    from saebench.report.pick import export as write

    for path in write(trial, to, kind, runs=runs_dir, tracking_uri=tracking_uri):
        echo(path)
