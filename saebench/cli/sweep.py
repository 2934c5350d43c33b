"""sweep: run a spec, or resume it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.cli.options import cache_option, plain_option, runs_option, set_option
from saebench.cli.output import echo
from saebench.runs import paths as places

if TYPE_CHECKING:
    from saebench.sweep import SweepResult


def devices_setting(devices: str) -> str:
    """Return `--devices 0,1` as an override of the spec: a list of indices and UUIDs, or auto, cpu, mps."""
    if devices in ("auto", "cpu", "mps"):
        return f"run.devices={devices}"
    return f"run.devices=[{', '.join(part.strip() for part in devices.split(','))}]"


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@runs_option
@cache_option
@click.option(
    "--devices", "--gpus", metavar="LIST", help="auto, cpu, mps, or GPUs by index or UUID: 0,1. Short for run.devices."
)
@click.option("--per-device", metavar="N", help="Trials at once on one device. Short for run.per_device.")
@click.option("--name", metavar="NAME", help="Name of the sweep. Short for --set name=NAME.")
@click.option("--extend", is_flag=True, help="Add seeds, points or budget to an existing sweep.")
@click.option("--retry-failed", is_flag=True, help="Retry the trials that failed.")
@click.option("--circular-anyway", is_flag=True, help="Allow data.model itself as eval.second_encoder.")
@click.option("--resume", is_flag=True, hidden=True, help="Nothing: the same command always resumes.")
@click.option("--dry-run", is_flag=True, help="Show the plan (as `saebench plan`), start nothing.")
@plain_option
def sweep(
    spec: Path,
    overrides: tuple[str, ...],
    runs_dir: str | None,
    cache_dir: str | None,
    devices: str | None,
    per_device: str | None,
    name: str | None,
    extend: bool,
    retry_failed: bool,
    circular_anyway: bool,
    resume: bool,  # noqa: ARG001 - said by who is used to it
    dry_run: bool,
    plain: bool,
) -> None:
    """Run the sweep of SPEC, or resume it.

    The same command again resumes where it stopped. Ctrl-C once: running trials checkpoint and exit; twice: now.
    SIGTERM, SIGUSR1 and a closed terminal count like Ctrl-C. Exit codes: 0 success, 2 error in the spec or command
    line, 3 some trials failed, 4 too many trials failed, 5 error of a device, the data or tracking, 6 another process
    holds the sweep, 75 stopped and can be resumed, 130 interrupted.
    """
    from saebench.sweep import run_sweep
    from saebench.terminal.views import choose_view

    short = [devices_setting(devices)] if devices else []
    short += [f"run.per_device={per_device}"] if per_device else []
    short += [f"name={name}"] if name else []
    if dry_run:
        from saebench.cli.plan import show_plan
        from saebench.spec import load_spec

        show_plan(load_spec(spec, [*overrides, *short]), runs_dir, cache_dir)
        return
    result = run_sweep(
        spec,
        runs_dir=runs_dir,
        cache_dir=cache_dir,
        overrides=[*overrides, *short],
        extend=extend,
        retry_failed=retry_failed,
        view=choose_view(plain=plain),
        circular_anyway=circular_anyway,
    )
    if result.exit_code in (0, 3):
        _print(_closing(result))
    sys.exit(result.exit_code)


def _print(lines: Iterator[str]) -> None:
    """Print lines, wrapped between words on a terminal, whole in a pipe."""
    if not sys.stdout.isatty():
        for line in lines:
            echo(line)
        return
    from rich.text import Text

    from saebench.terminal.console import make_console

    console = make_console()
    for line in lines:
        console.print(Text(line))


def _closing(result: SweepResult) -> Iterator[str]:
    """Print the verdict and three commands to continue with, or the reason if no report can be made (the sweep itself
    has ended well)."""
    from saebench.errors import UserError
    from saebench.report.closing import closing
    from saebench.report.headline import leaders

    known = places.runs_dir() == result.root.parent
    where = result.name if known else _shorter(result.root)
    number = 0
    try:
        report = result.report
        yield ""
        yield from closing(report)
        number = next((row["best_trial"] for row in leaders(report)), 0)
    except UserError as error:
        yield f"no verdict yet: {error}"
    trial = f"{where}/{number}" if known else _shorter(result.trial(number))
    yield ""
    yield f"saebench report {where}    the whole verdict; --open shows it as a page"
    yield f"saebench latents {trial}    what its latents mean"
    yield f"saebench ui {where}    the trials in MLflow's pages"


def _shorter(path: Path) -> str:
    """Return the path, absolute or relative, whichever is shorter."""
    return min(str(path), os.path.relpath(path), key=len)
