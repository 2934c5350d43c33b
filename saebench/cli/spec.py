"""validate, schema, init: check a spec, list its keys, write a first one."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from saebench.cli.options import set_option
from saebench.cli.output import echo
from saebench.cli.plan import counts
from saebench.errors import SpecError, UserError
from saebench.plan import make_plan
from saebench.spec import load_spec

if TYPE_CHECKING:
    from saebench.stores.look import Look
    from saebench.stores.sniff import Found


@click.command()
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SPEC...")
@set_option
def validate(specs: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Check every SPEC and report all problems at once.

    One line each: file:line:column: key: value: rule.
    """
    problems = []
    for path in specs:
        try:
            found = make_plan(load_spec(path, overrides))
        except UserError as error:
            problems.append(str(error))
        else:
            echo(f"{path}: valid: {counts(found)}")
    if problems:
        raise SpecError("\n".join(problems))


@click.command()
@click.option("--markdown", is_flag=True, help="Print tables of every key, its default and meaning instead.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of a spec, for editors."""
    if markdown:
        from saebench.spec.reference import reference

        echo(reference(), nl=False)
        return
    from saebench.spec.schema import schema as build

    echo(json.dumps(build(), indent=1))


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Your texts: csv, tsv, jsonl, parquet, txt, xlsx (also .gz), or a folder of *.txt.",
)
@click.option("--column", metavar="NAME", help="Column with the texts (default: the one with the longest).")
@click.option("--label", metavar="NAME", help="Column with classes (default: one whose values repeat).")
@click.option("--no-measure", is_flag=True, help="Do not time a training step; estimate no minutes.")
def init(file: Path | None, data: Path | None, column: str | None, label: str | None, no_measure: bool) -> None:
    """Write a starter spec to FILE, for your own texts with --data.

    With --data, the spec fits that file: format, delimiter and encoding, columns of texts and labels, budget, sparsity
    and width. Default: the data's name, else sweep.yaml; - prints it. Never overwrites.
    """
    if data is not None:
        _init_for(data, file or Path(f"{_name_of(data)}.yaml"), column, label, measured=not no_measure)
        return
    if column or label:
        raise UserError("--column and --label belong to --data FILE")
    file = file or Path("sweep.yaml")
    text = resources.files("saebench.spec").joinpath("starter.yaml").read_text("utf-8")
    if str(file) == "-":
        echo(text, nl=False)
        return
    text = text.replace("my_sweep", _name_of(file)).replace("FILE", shlex.quote(file.name))
    _write_new(file, text)
    echo(f"{file}: written; next: saebench plan {shlex.quote(str(file))}")


def _name_of(file: Path) -> str:
    """Return a sweep's name from a file's name."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0] or file.name
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-")[:100] or "my_sweep"


def _write_new(file: Path, text: str) -> None:
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(f"{file}: exists already, and init never overwrites; give another FILE") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None


def _init_for(data: Path, file: Path, column: str | None, label: str | None, *, measured: bool) -> None:
    """Read `data`, write the spec to `file`, print what was found and how long the sweep takes."""
    from saebench.cli import starter
    from saebench.stores.sniff import sniff

    found = sniff(data)
    text, label = starter.choose(found, column, label)
    if str(file) != "-" and file.exists():
        raise UserError(f"{file}: exists already, and init never overwrites; give another FILE")
    err = str(file) == "-"
    if found.format in ("xlsx", "folder"):
        found = _converted(found, file)
        echo(f"{found.path}: written from {data}, one row per text", err=err)
    _print_columns(found, starter.described(found, text, label), err)
    seen = _look(found, text, label, file)
    folder = Path.cwd() if err else file.absolute().parent
    spec = starter.starter(_name_of(data), found, text, label, seen.counts["kept"], folder)
    if err:
        echo(spec, nl=False)
        return
    _write_new(file, spec)
    echo(f"{file}: written")
    _print_outlook(file, measured)
    echo(f"next: saebench plan {shlex.quote(str(file))}, then saebench sweep {shlex.quote(str(file))}")


def _converted(found: Found, file: Path) -> Found:
    """Write the rows as a Parquet file beside the spec."""
    import pandas

    from saebench.stores.sniff import rows_of, sniff

    target = Path(found.path.name) if str(file) == "-" else file.parent / found.path.name
    target = target.with_suffix(".parquet")
    if target.exists():
        raise UserError(f"{target}: exists already, and init never overwrites")
    pandas.DataFrame(rows_of(found)).to_parquet(target, index=False)
    return sniff(target)


def _print_columns(found: Found, rows: list[tuple[str, str, str]], err: bool) -> None:
    from textwrap import shorten

    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from saebench.terminal.console import make_console

    special = [f"delimiter {found.delimiter!r}" if found.delimiter else "", found.encoding or ""]
    echo(f"{found.path}: " + ", ".join(filter(None, [found.format, *special])), err=err)
    console = make_console(sys.stderr if err else None)
    table = Table("column", "taken for", "for example", box=box.SIMPLE_HEAD, pad_edge=False)
    room = max(20, console.width - sum(max(len(row[i]) for row in rows) for i in (0, 2)) - 12)
    for name, example, role in rows:
        table.add_row(escape(name), role, escape(shorten(example, room, placeholder=" …")))
    console.print(table)


def _look(found: Found, text: str, label: str | None, file: Path) -> Look:
    """Read the file as a sweep reads it."""
    from saebench.cli.starter import MODEL, MOST_TEXTS
    from saebench.config import DataConfig, DatasetConfig
    from saebench.stores.look import look

    dataset = DatasetConfig(
        path=found.format,
        data_files=str(found.path.absolute()),
        text_column=text,
        label_column=label,
        delimiter=found.delimiter,
        encoding=found.encoding,
    )
    seen = look(DataConfig(model=MODEL, dataset=dataset, num_examples=MOST_TEXTS))
    if seen.counts["kept"] < 100:
        raise UserError(f"{found.path}: {seen.counts['kept']} texts: too few to train on; {file} is not written")
    return seen


def _print_outlook(file: Path, measured: bool) -> None:
    """Print texts, minutes and warnings of the new spec."""
    from saebench.cli import outlook

    spec = load_spec(file)
    plan, corpus = make_plan(spec), outlook.corpus(spec, {})
    if corpus is not None:
        echo(f"texts: {outlook.about_texts(spec, corpus)}")
    if measured and (time := outlook.minutes(plan, corpus, cached=False)):
        echo(f"time: {outlook.about_time(time)}")
    for line in outlook.warnings(plan, corpus):
        echo(f"warning: {line}")
