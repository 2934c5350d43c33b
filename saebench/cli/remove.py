"""rm: remove a sweep."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from saebench.cli.complete import complete_sweeps
from saebench.cli.options import runs_option
from saebench.cli.output import echo
from saebench.cli.show import find_sweep
from saebench.errors import UserError
from saebench.runs.paths import SweepPaths

if TYPE_CHECKING:
    from saebench.report.sources import Source


@click.command()
@click.argument("name", metavar="SWEEP", shell_complete=complete_sweeps)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--keep-runs", is_flag=True, help="Leave its runs in MLflow.")
@runs_option
def rm(name: str, yes: bool, keep_runs: bool, runs_dir: str | None) -> None:
    """Remove a sweep: its directory, and its runs in MLflow.

    Asks first. MLflow only marks runs as deleted; `mlflow gc` removes them for good. Cached embeddings stay: other
    sweeps may use them.
    """
    from saebench.runs.holder import describe, holder
    from saebench.tracking.remove import delete_runs

    paths = find_sweep(name, runs_dir)
    if holder(paths) is not None:
        raise UserError(f"{paths.name}: {describe(paths)} runs it; first run: saebench stop {paths.name}")
    if paths.root.is_symlink():
        raise UserError(f"{paths.root}: is a symbolic link; name the directory that it points to")
    source, runs = (None, []) if keep_runs else _runs(paths)
    what = f"{paths.root} ({len(paths.trials())} trials)" + (f" and {len(runs)} runs in MLflow" if runs else "")
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(
                f"{what}: cannot ask for confirmation, because stdin is not a terminal; add --yes to remove it"
            )
        click.confirm(f"Remove {what}?", abort=True)
    if source is not None:
        delete_runs(source.uri, runs)
    shutil.rmtree(paths.root)
    echo(f"removed: {what}")


def _runs(paths: SweepPaths) -> tuple[Source | None, list[str]]:
    """Return MLflow's address and the ids of the sweep's runs; if MLflow cannot be read, print why and return none."""
    from saebench.report.sources import find
    from saebench.tracking.remove import runs_of

    try:
        source = find([str(paths.root)])[0]
        return source, runs_of(source.uri, source.experiment_id, source.run_id)
    except UserError as error:
        echo(f"its runs in MLflow stay: {error}", err=True)
        return None, []
