"""encode: sparse codes of new texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from saebench.cli.options import runs_option
from saebench.errors import UserError


@click.command()
@click.argument("trial")
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="Encode this text; repeatable.")
@click.option(
    "--file", type=click.Path(path_type=Path), metavar="FILE", help="Texts: lines, .jsonl, .csv, .parquet; - for stdin."
)
@click.option("--column", metavar="NAME", help="Column of the texts (default: the sweep's text_column).")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="codes.npz, .parquet or .jsonl.")
@click.option("--device", default="cpu", metavar="DEVICE", help="Where to compute (default: cpu).")
@runs_option
def encode(
    trial: str,
    texts: tuple[str, ...],
    file: Path | None,
    column: str | None,
    out: Path | None,
    device: str,
    runs_dir: str | None,
) -> None:
    """Encode new texts into the latents of TRIAL.

    TRIAL is SWEEP/NUMBER, a trial's directory, or a folder that `saebench export` wrote. The encoder, prompt and
    preprocessing are those of the sweep. Without --out, a line per latent that fires.
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
    encoder = Encoder(found, device=device)
    if out is None:
        _print(encoder, texts)
        return
    coming = iter(texts) if file is None else _texts(file, column or found.config.data.dataset.text_column)
    with SINKS[out.suffix.lower()](out, found.sae.dict_size) as sink:
        for _, codes in encoder.stream(coming):
            sink.write(codes)
    click.echo(f"written: {out} ({sink.rows:,} texts)", err=True)


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
