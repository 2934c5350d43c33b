"""stop, retry, resume: control a sweep from another terminal, through files in its directory."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from saebench.cli.complete import complete_sweeps
from saebench.cli.options import cache_option, plain_option, runs_option
from saebench.cli.output import echo
from saebench.cli.show import find_sweep
from saebench.errors import UserError
from saebench.runs.durable import write_json, write_text
from saebench.runs.paths import SweepPaths

if TYPE_CHECKING:
    from saebench.spec import SweepSpec


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@runs_option
@click.option("--now", is_flag=True, help="Kill running trials; they resume from their last checkpoint later.")
def stop(name: str | None, runs_dir: str | None, now: bool) -> None:
    """Ask a running sweep to stop; it can be resumed.

    No new trials start; running ones write a checkpoint and exit.
    """
    from saebench.runs.holder import describe, holder

    paths = find_sweep(name, runs_dir)
    if holder(paths) is None:
        raise UserError(f"{paths.name}: no scheduler is running: nothing to stop")
    write_text(paths.stop, "now" if now else "leave")
    echo(f"{paths.name}: asked {describe(paths)} to stop{' now' if now else ''}")


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@runs_option
@cache_option
@click.option("--failed", "every", is_flag=True, help="All trials that failed (the default).")
@click.option("--trial", "numbers", multiple=True, type=int, metavar="N", help="This trial; repeatable.")
@plain_option
def retry(
    name: str | None, runs_dir: str | None, cache_dir: str | None, every: bool, numbers: tuple[int, ...], plain: bool
) -> None:
    """Retry failed trials, counting their retries from 0.

    A running sweep retries them itself; otherwise this command resumes the sweep and runs it to its end.
    """
    from saebench.runs.holder import describe, holder
    from saebench.sweep import run_sweep
    from saebench.terminal.views import choose_view

    if every and numbers:
        raise UserError("--failed and --trial: give one of the two")
    paths = find_sweep(name, runs_dir)
    wanted = _failed(paths, numbers)
    spec = _spec_of(paths)
    write_json(paths.retry, wanted)
    if holder(paths) is not None:
        echo(f"{paths.name}: {describe(paths)} retries {len(wanted)} trial{'s' * (len(wanted) > 1)}")
        return
    view = choose_view(plain=plain)
    result = run_sweep(spec, runs_dir=paths.root.parent, cache_dir=cache_dir, view=view)
    sys.exit(result.exit_code)


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@runs_option
@cache_option
@plain_option
def resume(name: str | None, runs_dir: str | None, cache_dir: str | None, plain: bool) -> None:
    """Run a sweep from where it stopped, without its spec's file.

    `saebench sweep SPEC` does the same and accepts changes (--extend, --set).
    """
    from saebench.sweep import run_sweep
    from saebench.terminal.views import choose_view

    paths = find_sweep(name, runs_dir)
    spec = _spec_of(paths)
    result = run_sweep(spec, runs_dir=paths.root.parent, cache_dir=cache_dir, view=choose_view(plain=plain))
    sys.exit(result.exit_code)


def _spec_of(paths: SweepPaths) -> SweepSpec:
    """Return the spec that the sweep was started with; raise UserError if its folder was renamed."""
    from saebench.sweep import spec_of

    spec = spec_of(paths)
    if spec.name != paths.name:
        raise UserError(
            f"{paths.root}: the folder of the sweep {spec.name} was renamed; rename it back, then run this again"
        )
    return spec


def _failed(paths: SweepPaths, numbers: tuple[int, ...]) -> list[int]:
    """Return the failed trials, or `numbers`, all of which must have failed."""
    from saebench.runs.state import read_state

    states = {s.number: s.state for trial in paths.trials() if (s := read_state(trial)) is not None}
    wrong = [n for n in numbers if states.get(n) != "failed"]
    if wrong:
        raise UserError(
            f"{paths.name}: trial {wrong[0]}: {states.get(wrong[0], 'does not exist')}; "
            "only failed trials can be retried"
        )
    wanted = list(numbers) or sorted(n for n, state in states.items() if state == "failed")
    if not wanted:
        raise UserError(f"{paths.name}: no trial has failed")
    return wanted
