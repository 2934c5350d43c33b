"""validate, schema, init: is a spec right, what may it hold, where does one begin."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path

import click

from saebench.cli.options import set_option
from saebench.cli.output import echo
from saebench.cli.plan import counts
from saebench.errors import SpecError, UserError
from saebench.plan import make_plan
from saebench.spec import load_spec


@click.command()
@click.argument("specs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SPEC...")
@set_option
def validate(specs: tuple[Path, ...], overrides: tuple[str, ...]) -> None:
    """Check every SPEC and name all problems at once.

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
@click.option("--markdown", is_flag=True, help="Every key, its default and meaning instead, as in docs/spec.md.")
def schema(markdown: bool) -> None:
    """Print the JSON schema of a spec, for editors."""
    if markdown:
        from saebench.spec.reference import reference

        echo(reference(), nl=False)
        return
    from saebench.spec.schema import schema as build

    echo(json.dumps(build(), indent=1))


@click.command()
@click.argument("file", default="sweep.yaml", type=click.Path(path_type=Path))
def init(file: Path) -> None:
    """Write a commented starter spec to FILE.

    Default: sweep.yaml; - prints it. Never overwrites.
    """
    text = resources.files("saebench.spec").joinpath("starter.yaml").read_text("utf-8")
    if str(file) == "-":
        echo(text, nl=False)
        return
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", file.stem).strip("._-")[:100] or "my_sweep"
    text = text.replace("my_sweep", name).replace("FILE", shlex.quote(file.name))
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(text)
    except FileExistsError:
        raise UserError(f"{file}: is there already, and init never overwrites") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    echo(f"{file}: written; next: saebench plan {shlex.quote(str(file))}")
