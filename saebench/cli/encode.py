"""encode: sparse codes of new texts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.cli.options import cache_option, runs_option
from saebench.errors import UserError

if TYPE_CHECKING:
    from saebench.latents.trial import TrainedSAE
    from saebench.stores.entry import CacheEntry


@click.command()
@click.argument("trial")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="Encode this text; repeatable.")
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE", help="Texts: lines, .jsonl, .csv, .parquet; - for stdin."
)
@click.option("--column", metavar="NAME", help="Column of the texts (default: the sweep's text_column).")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the codes there: .npz, .parquet or .jsonl.",
)
@click.option("--device", default="cpu", metavar="DEVICE", help="Where to compute (default: cpu).")
@cache_option
@runs_option
def encode(
    trial: str,
    texts: tuple[str, ...],
    file: Path | None,
    column: str | None,
    out: Path | None,
    device: str,
    cache_dir: str | None,
    runs_dir: str | None,
) -> None:
    """Encode new texts into the latents of TRIAL.

    TRIAL is SWEEP/NUMBER, a trial's directory, or a folder that `saebench export` wrote. The encoder, prompt and
    preprocessing are those of the sweep; texts of the sweep itself are taken from its embedding cache. Without --out,
    a line per latent that fires.
    """
    from saebench.latents.encode import Encoder
    from saebench.latents.find import trials
    from saebench.latents.sinks import SINKS

    if (file is None) == (not texts):
        raise UserError("give --text or --file, one of the two")
    if out is None and file is not None:
        raise UserError("--file needs --out codes.npz, codes.parquet or codes.jsonl")
    if out is not None and out.suffix.lower() not in SINKS:
        raise UserError(f"--out {out}: unknown suffix; use one of {', '.join(SINKS)}")
    found = trials(trial, runs_dir, _no_sweep)[0]
    found.sae.to(device)
    encoder = Encoder(found, device=device, entry=_cached(found, cache_dir))
    if out is None:
        _print(encoder, texts)
        return
    column = column or found.config.data.dataset.text_column
    coming = iter(texts) if file is None else _texts(file, column)
    with SINKS[out.suffix.lower()](out, found.sae.dict_size) as sink, _progress(file, column) as show:
        for _, codes in encoder.stream(coming):
            sink.write(codes)
            show(sink.rows)
    reused = f", {encoder.reused:,} of them from the embedding cache" if encoder.reused else ""
    click.echo(f"written: {out} ({sink.rows:,} texts{reused})", err=True)


def _cached(trial: TrainedSAE, cache_dir: str | None) -> CacheEntry | None:
    """The embeddings that the trial was trained on, if the cache still holds them."""
    from saebench.latents.corpus import open_entry
    from saebench.runs.paths import cache_dir as default_cache_dir

    if trial.config.cache_key is None:
        return None
    try:
        return open_entry(trial.config.data, default_cache_dir(cache_dir), trial.config.cache_key)
    except (OSError, ValueError, UserError):
        return None


@contextmanager
def _progress(file: Path | None, column: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that shows how many texts are encoded, the rate and the time left; it shows nothing unless
    stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.live import Live

    from saebench.stores.progress import Progress
    from saebench.terminal.console import make_console
    from saebench.terminal.picture import encoding_bar

    total = sum(1 for _ in _texts(file, column)) if file is not None and file.is_file() else None
    console, started = make_console(sys.stderr), time.monotonic()

    def show(done: int) -> None:
        now = Progress("encoding" if done else "loading", done, total, done / (time.monotonic() - started))
        live.update(encoding_bar(now, console.width), refresh=True)

    with Live(console=console, auto_refresh=False, transient=True) as live:
        show(0)
        yield show


def _no_sweep(name: str | None, _: str | None) -> list[Path]:
    raise UserError(f"{name}: not a trial; give SWEEP/NUMBER, a trial's directory or an exported folder")


def _texts(file: Path, column: str) -> Iterator[str]:
    from saebench.latents.read_texts import read_texts

    return read_texts(file, column)


def _print(encoder: object, texts: tuple[str, ...]) -> None:
    from saebench.latents.encode import Encoder
    from saebench.latents.visible import visible

    assert isinstance(encoder, Encoder)
    codes = encoder.encode(texts)
    for i, text in enumerate(texts):
        latents, values = codes.row(i)
        click.echo(f"{visible(text, 100)}: {len(latents)} latents")
        for latent, value in sorted(
            zip(latents.tolist(), values.tolist(), strict=True), key=lambda pair: -abs(pair[1])
        ):
            click.echo(f"  {latent:>6}  {value:.4f}")
