"""help, version: commands that people try first."""

from __future__ import annotations

import click

from saebench.cli.output import echo


@click.command(name="help")
@click.argument("command", required=False, metavar="[COMMAND]")
@click.pass_context
def help_(ctx: click.Context, command: str | None) -> None:
    """Show what the commands do, or the options of one."""
    parent = ctx.parent
    assert parent is not None
    if command is None:
        echo(parent.get_help())
        return
    assert isinstance(parent.command, click.Group)
    name, found, _ = parent.command.resolve_command(parent, [command])
    assert found is not None
    with click.Context(found, info_name=name, parent=parent) as inner:
        echo(found.get_help(inner))


@click.command()
def version() -> None:
    """Print the version."""
    import saebench

    echo(f"saebench, version {saebench.__version__}")
