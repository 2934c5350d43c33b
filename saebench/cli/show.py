"""status, ls, logs: the state of sweeps, from the files in their directories."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from saebench.cli.complete import complete_sweeps, complete_trials
from saebench.cli.options import runs_option
from saebench.cli.output import echo
from saebench.errors import SpecError, UserError
from saebench.runs import paths as places
from saebench.runs.lost import lost_files
from saebench.runs.paths import SweepPaths, TrialPaths

if TYPE_CHECKING:
    from saebench.runs.board import Board

POLL = 0.5
"""Seconds between two reads of a followed file."""


def sweeps(runs_dir: str | None) -> list[SweepPaths]:
    """Return the sweeps of a directory, the one that changed last first. Raises OSError if it cannot be read."""
    root = places.runs_dir(runs_dir)
    if root.exists():
        os.scandir(root).close()  # glob finds nothing in what it may not read
    roots = {file.parent for name in (places.LOCK, places.HOLDER) for file in root.glob(f"*/{name}")}
    return sorted((SweepPaths(folder) for folder in roots if _is_sweep(folder)), key=_last_change, reverse=True)


def _is_sweep(folder: Path) -> bool:
    """Return whether a sweep was started there, or is being prepared: before the texts are encoded there is only
    scheduler.json."""
    from saebench.runs.holder import holder

    return (folder / places.LOCK).is_file() or holder(SweepPaths(folder)) is not None


def _last_change(paths: SweepPaths) -> float:
    files = (paths.lock, paths.journal, paths.log, paths.holder)
    return max((_changed(file) for file in files), default=0.0)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # the sweep that it belongs to may end at any moment
        return 0.0


def find_sweep(name: str | None, runs_dir: str | None) -> SweepPaths:
    """Return a sweep by name or directory; by default the one that changed last. Raises UserError."""
    if name is None:
        known = sweeps(runs_dir)
        if not known:
            raise UserError(f"{places.runs_dir(runs_dir)}: no sweeps; --runs-dir names another folder")
        return known[0]
    for root in (places.runs_dir(runs_dir) / name, Path(name).absolute()):
        if _is_sweep(root):
            return SweepPaths(root)
    there = ", ".join(paths.name for paths in sweeps(runs_dir)[:8]) or "none"
    raise UserError(f"{name}: no such sweep in {places.runs_dir(runs_dir)} (there: {there})")


@click.command()
@click.argument("name", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@runs_option
@click.option("--watch", is_flag=True, help="Update the screen until the sweep ends or Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def status(name: str | None, runs_dir: str | None, watch: bool, as_json: bool) -> None:
    """Show the state of a sweep.

    Slots, trials by state, pace, verdicts, failures with reasons. SWEEP is a name or a directory; by default the
    sweep that changed last. Exit code 3: a file of a trial is lost or damaged.
    """
    from saebench.runs.holder import holder

    paths = find_sweep(name, runs_dir)
    if not watch:
        lost = list(lost_files(paths))
        for line in lost:
            echo(f"damaged: {line}", err=as_json)
        _print_json(paths, lost.append) if as_json else _print_status(paths, lost.append)
        if lost:
            raise SystemExit(3)
        return
    try:
        _watch(paths)
    except KeyboardInterrupt:
        return
    if holder(paths) is None:
        echo(_scheduler_line(paths))


def _print_status(paths: SweepPaths, damaged: Callable[[str], None]) -> None:
    from saebench.terminal.console import make_console
    from saebench.terminal.picture import picture

    console = make_console()
    console.print(_scheduler_line(paths), soft_wrap=True)
    for sentence in _about_texts(paths):
        console.print(sentence, soft_wrap=True, markup=False, highlight=False)
    lines: list[str] = []
    board = _board(paths, lines.append)
    board.notes.extend(lines)
    for line in lines:
        damaged(line)
    console.print(picture(board, 1000, console.width))


def _about_texts(paths: SweepPaths) -> list[str]:
    """Return the sentences on texts left out, cut or leaking, from the sweep's lock; none if it cannot be read."""
    from saebench.runs import corpus
    from saebench.runs.lock import read_lock

    try:
        lock = read_lock(paths)
    except UserError:
        return []
    data = lock.get("data") if isinstance(lock, dict) else getattr(lock, "data", None)
    return corpus.sentences(data) if isinstance(data, dict) else []


def _watch(paths: SweepPaths) -> None:
    from rich.live import Live

    from saebench.runs.holder import holder
    from saebench.terminal.console import make_console
    from saebench.terminal.picture import picture

    console = make_console()
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(picture(_board(paths), console.height, console.width), refresh=True)
            if holder(paths) is None:
                break
            time.sleep(1.0)
    if not console.is_terminal:  # rich ends the last line of a screen only
        console.line()


def _board(paths: SweepPaths, note: Callable[[str], None] | None = None) -> Board:
    from saebench.forecast import empty_board, trials_left
    from saebench.plan import make_plan
    from saebench.runs.board import read_board
    from saebench.runs.holder import holder
    from saebench.runs.lock import read_lock
    from saebench.runs.preparing import read_preparing
    from saebench.sweep import spec_of

    lock = read_lock(paths)
    held = holder(paths)
    plan = make_plan(spec_of(paths), lock.d_in) if lock else None
    left = partial(trials_left, plan) if plan else lambda _: 0
    board = read_board(paths, held["since"] if held else None, left, note, empty_board(plan) if plan else None)
    board.preparing = read_preparing(paths) if held else None
    if paths.stop.exists():
        board.stopping = "saebench stop"
    return board


def _scheduler_line(paths: SweepPaths) -> str:
    from saebench.runs.holder import describe, holder

    if holder(paths) is not None:
        begins = "" if paths.lock.exists() else "; preparing embeddings; no trial has begun"
        return f"{paths.root}: {describe(paths)}{begins}"
    return f"{paths.root}: no scheduler is running"


def _print_json(paths: SweepPaths, damaged: Callable[[str], None]) -> None:
    """One object; its trials are printed as they are read, however many there are."""
    from saebench.runs.board import read_states

    head = json.dumps(_as_json(paths, damaged), indent=1)
    echo(head.removesuffix("\n}") + ',\n "trials": [', nl=False)
    for index, state in enumerate(read_states(paths, lambda _: None)):
        echo(("," if index else "") + "\n  " + json.dumps(asdict(state)), nl=False)
    echo("\n ]\n}")


def _as_json(paths: SweepPaths, damaged: Callable[[str], None]) -> dict[str, Any]:
    from saebench.runs.holder import holder
    from saebench.runs.lock import read_lock

    lines: list[str] = []
    board = _board(paths, lines.append)
    for line in lines:
        echo(line, err=True)
        damaged(line)
    lock = read_lock(paths)
    return {
        "sweep": paths.name,
        "root": str(paths.root),
        "scheduler": holder(paths),
        "preparing": asdict(now) | {"seconds_left": now.seconds_left} if (now := board.preparing) else None,
        "stopping": board.stopping or None,
        "planned": board.planned,
        "counts": {state: count for state, count in board.counts.items() if count},
        "trials_per_minute": board.rate(),
        "seconds_left": board.eta(),
        "tracking": lock.tracking.model_dump() if lock else None,
        "running": [asdict(row) for row in board.running.values()],
        "failures": {f"{number:04d}": reason for number, reason in board.failures.items()},
    }


@click.command()
@runs_option
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def ls(runs_dir: str | None, as_json: bool) -> None:
    """List the sweeps, the one that changed last first."""
    from saebench.runs.board import read_board
    from saebench.runs.holder import holder

    rows = []
    for paths in sweeps(runs_dir):
        lock, held, counts = _lock_or_error(paths), holder(paths), read_board(paths).counts
        row = {"sweep": paths.name, "begun": lock.get("created"), "scheduler": held, "counts": dict(counts)}
        rows.append({**row, "root": str(paths.root), "description": lock.get("description", "")})
    if as_json:
        echo(json.dumps(rows, indent=1))
        return
    _print_rows(rows, places.runs_dir(runs_dir))


def _lock_or_error(paths: SweepPaths) -> dict[str, Any]:
    """What lock.json says; one that cannot be read hides no other sweep."""
    from saebench.runs.lock import read_lock

    try:
        lock = read_lock(paths)
        return lock.info() if lock else {}
    except SpecError as error:
        echo(f"saebench: {error}", err=True)
        return {}


def _print_rows(rows: list[dict[str, Any]], root: Path) -> None:
    from rich.table import Table

    from saebench.terminal.console import make_console

    if not rows:
        echo(f"{root}: no sweeps; --runs-dir names another folder")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for column in ("sweep", "begun", "scheduler", "trials"):
        table.add_column(column)
    for row in rows:
        held = row["scheduler"]
        counts = ", ".join(f"{count} {state}" for state, count in row["counts"].items())
        table.add_row(row["sweep"], row["begun"], f"{held['pid']} on {held['host']}" if held else "", counts)
    make_console().print(table)


@click.command()
@click.argument("trial", metavar="TRIAL", shell_complete=complete_trials)
@click.option("--sweep", "name", metavar="SWEEP", help="Name or directory (default: the sweep that changed last).")
@runs_option
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is added until the trial ends or Ctrl-C.")
def logs(trial: str, name: str | None, runs_dir: str | None, follow: bool) -> None:
    """Print what a trial printed, all attempts. TRIAL is a number, or SWEEP/NUMBER."""
    before, _, number = trial.rpartition("/")
    paths = find_sweep(before or name, runs_dir)
    if not number.isdecimal() or not (root := paths.trial(int(number)).root).is_dir():
        numbers = [int(t.root.name) for t in paths.trials()]
        there = f"0 to {max(numbers)}" if numbers else "none"
        raise UserError(f"{paths.name}: no trial {number!r} (there: {there})")
    try:
        for text in _follow(TrialPaths(root), paths, follow):
            echo(text, nl=False)
    except KeyboardInterrupt:
        return


def _follow(trial: TrialPaths, paths: SweepPaths, follow: bool) -> Iterator[str]:
    """Yield the log's text; with `follow` also what is added, until the trial ends."""
    from saebench.runs.holder import holder
    from saebench.runs.state import read_state

    file: IO[str] | None = None
    try:
        while True:
            state = read_state(trial)
            over = not follow or (state is not None and state.ended) or holder(paths) is None
            if file is None and trial.log.exists():
                file = trial.log.open(encoding="utf-8", errors="replace")
            if file is not None:
                yield file.read()
            if over:
                return
            time.sleep(POLL)
    finally:
        if file is not None:
            file.close()
