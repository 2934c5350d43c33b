"""cache ls, build, verify, gc: commands for the embedding cache."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from saebench.cli.options import cache_option, set_option
from saebench.cli.output import echo
from saebench.errors import DataError, UserError
from saebench.runs import corpus, paths
from saebench.stores import cache as store
from saebench.stores import tidy
from saebench.stores.progress import Progress
from saebench.stores.tidy import Listed


@click.group()
def cache() -> None:
    """Embeddings that sweeps share: every corpus is encoded once."""


@cache.command()
@cache_option
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def ls(cache_dir: str | None, as_json: bool) -> None:
    """List the entries of the cache, most recently used first."""
    folder = paths.cache_dir(cache_dir)
    rows = [_row(listed) for listed in tidy.entries(folder)]
    if as_json:
        echo(json.dumps(rows, indent=1))
        return
    _print_rows(rows, _width())
    total = sum(row["bytes"] for row in rows)
    echo(f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}, {_size(total)} in {folder}")


@cache.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@cache_option
def build(spec: Path, overrides: tuple[str, ...], cache_dir: str | None) -> None:
    """Encode the corpus of SPEC now, on the devices that its `run` section names."""
    from saebench.devices import find_devices
    from saebench.spec import load_spec

    loaded = load_spec(spec, overrides)
    devices = [device for device, _ in find_devices(loaded.run.devices)]
    entry = store.build(loaded.data, paths.cache_dir(cache_dir), devices, _Lines())
    parts = f"{entry.num_train:,} to train on, {entry.num_validation:,} for validation, {entry.num_test:,} for test"
    echo(f"{entry.directory}: {entry.count:,} texts ({parts}), {entry.d_in} values each")
    for sentence in corpus.sentences(entry.info):
        echo(sentence)


@cache.command()
@cache_option
def verify(cache_dir: str | None) -> None:
    """Check every file against its checksum, also those whose rows are mapped; exit code 5 if one is damaged."""
    damaged = 0
    for folder, problems in tidy.verify(paths.cache_dir(cache_dir)):
        echo(f"{folder.name}: {'sound' if not problems else f'{len(problems)} damaged'}")
        for problem in problems:
            echo(f"  {problem}")
        damaged += len(problems)
    if damaged:
        raise DataError(
            f"{damaged} damaged {'file' if damaged == 1 else 'files'}; the next sweep repairs those in the cache"
        )


@cache.command()
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@click.option(
    "--unused-for", type=click.FloatRange(0), metavar="DAYS", help="Also remove entries not used for this many days."
)
@click.option("--dry-run", is_flag=True, help="List what would be removed; remove nothing.")
@cache_option
def gc(keys: tuple[str, ...], unused_for: float | None, dry_run: bool, cache_dir: str | None) -> None:
    """Remove leftovers and unreadable entries, and the entries whose key starts with a KEY."""
    folder = paths.cache_dir(cache_dir)
    there = [listed.folder.name for listed in tidy.entries(folder)]
    for key in keys:
        if not key or not any(name.startswith(key) for name in there):
            raise UserError(
                f"{key or repr(key)}: no entry of the cache in {folder} begins with it; see saebench cache ls"
            )
    total = 0
    for path, size, why in tidy.gc(folder, keys, unused_for, dry_run):
        echo(f"{path.relative_to(folder)}: {_size(size)}: {why}")
        total += size
    echo(f"{_size(total)} {'would be freed' if dry_run else 'freed'}")


@dataclass
class _Lines:
    """Print progress as lines: every stage at its start, then every five seconds, and every message once."""

    every: float = 5.0
    _stage: str = ""
    _last: float = 0.0
    _said: set[str] = field(default_factory=set)

    def __call__(self, now: Progress) -> None:
        if now.message:
            if now.message not in self._said:
                echo(f"{'warning: ' if now.warning else ''}{now.message}", err=True)
            self._said.add(now.message)
            return
        if now.stage == self._stage and time.monotonic() - self._last < self.every:
            return
        self._stage, self._last = now.stage, time.monotonic()
        of = f" of {now.total:,}" if now.total else ""
        rate = f", {now.rate:,.0f}/s" if now.rate else ""
        echo({"loading": "loading the model"}.get(now.stage, f"{now.stage}: {now.done:,}{of}{rate}"), err=True)


_COLUMNS = ("key", "model", "dataset", "settings", "texts", "d_in", "type", "size", "state", "used")
_SPARE = frozenset({"d_in", "type", "used"})
"""Columns left out if the lines would not fit a terminal."""


def _print_rows(rows: list[dict[str, Any]], width: int | None) -> None:
    """Return a line per entry; in a terminal (of `width` columns), long names of models and datasets are wrapped."""
    columns = [column for column in _COLUMNS if column != "settings" or any(row["settings"] for row in rows)]
    table = [columns, *([str(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    room = sum(widths) + 2 * len(widths) - 2
    if width is not None and width < room:
        _print_wrapped(rows, [column for column in columns if column not in _SPARE], width)
        return
    for line in table:
        echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _print_wrapped(rows: list[dict[str, Any]], columns: list[str], width: int) -> None:
    from rich.table import Table

    from saebench.terminal.console import make_console

    shown = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="")
    for column in columns:
        shown.add_column(column, overflow="fold", no_wrap=column not in ("model", "dataset", "settings"))
    for row in rows:
        shown.add_row(*(str(row[column]) for column in columns))
    make_console(width=width).print(shown)


def _width() -> int | None:
    """Return the terminal's number of columns; None if the output is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _row(listed: Listed) -> dict[str, Any]:
    row: dict[str, Any] = {"key": listed.folder.name, "bytes": listed.bytes, "size": _size(listed.bytes)}
    row["used"] = time.strftime("%Y-%m-%d %H:%M", time.localtime(listed.last_used))
    if listed.manifest is None:
        return {
            **row,
            **dict.fromkeys(("model", "dataset", "texts", "d_in", "type"), "?"),
            "settings": "",
            "state": "unreadable",
        }
    manifest = listed.manifest
    mapped = ", mapped" if manifest.sources else ""
    whole = f"complete{mapped}" if listed.complete else f"{manifest.encoded / max(manifest.count, 1):.0%} encoded"
    return {
        **row,
        "model": manifest.named.get("model", "?"),
        "dataset": manifest.named.get("dataset", "?"),
        "settings": _settings(manifest.identity),
        "counts": manifest.counts,
        "sources": [source.path for source in manifest.sources],
        "texts": manifest.count,
        "d_in": manifest.d_in,
        "type": manifest.identity.get("dtype", "?"),
        "state": "being built" if listed.building else whole,
    }


_SETTINGS = ("model_revision", "prompt", "normalize", "max_seq_length", "precision", "name", "dataset_revision")


def _settings(key: dict[str, Any]) -> str:
    """Return the settings that distinguish an entry, if they are not the defaults."""
    usual = (None, False, "float32")
    return ", ".join(
        name if key[name] is True else f"{name} {key[name]}" for name in _SETTINGS if key.get(name) not in usual
    )


def _size(size: float) -> str:
    """Return a readable size in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
