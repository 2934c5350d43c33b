"""Completion of sweeps and trials in a shell (`_SAEBENCH_COMPLETE=bash_source saebench` prints the script for bash)."""

from __future__ import annotations

import click

from saebench.runs import paths as places
from saebench.runs.paths import SweepPaths


def complete_sweeps(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:  # noqa: ARG001 - click's
    """Return the names of the sweeps in the runs directory."""
    root = places.runs_dir(ctx.params.get("runs_dir"))
    return sorted(lock.parent.name for lock in root.glob("*/lock.json") if lock.parent.name.startswith(incomplete))


def complete_trials(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Return SWEEP/NUMBER for each trial once the sweep is typed, before that the sweeps."""
    sweep, slash, number = incomplete.partition("/")
    if not slash:
        return [f"{name}/" for name in complete_sweeps(ctx, param, incomplete)]
    trials = SweepPaths(places.runs_dir(ctx.params.get("runs_dir")) / sweep).trials()
    return [f"{sweep}/{trial.root.name}" for trial in trials if trial.root.name.startswith(number)]
