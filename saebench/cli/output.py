"""Lines that commands print."""

from __future__ import annotations

import click

from saebench.escape import escape_controls


def echo(text: object = "", *, err: bool = False, nl: bool = True) -> None:
    """Print text that may come from outside, with control characters escaped."""
    click.echo(escape_controls(str(text)), err=err, nl=nl)
