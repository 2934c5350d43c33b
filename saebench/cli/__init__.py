"""The command line: it parses, calls and prints."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from difflib import get_close_matches
from typing import Any

import click

from saebench import telemetry
from saebench.cli import habits
from saebench.cli.output import echo
from saebench.errors import PreflightError, UserError, environment_error_message
from saebench.terminal.encoding import allow_unencodable

COMMANDS = {
    "sweep": "saebench.cli.sweep:sweep",
    "plan": "saebench.cli.plan:plan",
    "validate": "saebench.cli.spec:validate",
    "schema": "saebench.cli.spec:schema",
    "init": "saebench.cli.spec:init",
    "status": "saebench.cli.show:status",
    "ls": "saebench.cli.show:ls",
    "logs": "saebench.cli.show:logs",
    "stop": "saebench.cli.steer:stop",
    "resume": "saebench.cli.steer:resume",
    "retry": "saebench.cli.steer:retry",
    "rm": "saebench.cli.remove:rm",
    "report": "saebench.cli.report:report",
    "best": "saebench.cli.take:best",
    "export": "saebench.cli.take:export",
    "latents": "saebench.cli.latents:latents",
    "encode": "saebench.cli.encode:encode",
    "explain": "saebench.cli.explain:explain",
    "ui": "saebench.cli.ui:ui",
    "cache": "saebench.cli.cache:cache",
    "help": "saebench.cli.about:help_",
    "version": "saebench.cli.about:version",
}
"""Name -> module of its click command, imported only when it is called."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Accept the names of other tools; suggest a command for a misspelt one."""
        name = habits.ALIASES.get(args[0], args[0])
        if name in habits.COMMANDS:
            ctx.fail(f"No such command {name!r}: {habits.COMMANDS[name]}.")
        near = get_close_matches(name, COMMANDS, 1)
        if near and name not in COMMANDS:
            ctx.fail(f"No such command {name!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, [name, *args[1:]])

    def invoke(self, ctx: click.Context) -> Any:
        """Exit with 130 on Ctrl-C, as a shell and `sweep` do; click alone would print "Aborted!" and exit with 1."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _InterruptedError from None
        except click.NoSuchOption as error:
            hint = habits.OPTIONS.get(error.option_name)
            if hint is None:
                raise
            raise click.NoSuchOption(error.option_name, f"{error.message}: {hint}", ctx=error.ctx) from None


class _InterruptedError(Exception):
    """KeyboardInterrupt, as a class that click does not catch."""


def _print_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    if asked:
        import saebench

        echo(f"saebench, version {saebench.__version__}")
        ctx.exit()


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-V", "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
              help="Print the version.")  # fmt: skip
def cli() -> None:
    """Sweeps of sparse autoencoders over sentence embeddings."""
    telemetry.disable()


def main() -> None:
    """Run the command line. A user's mistake or a full disk gives one line and an exit code, no traceback."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before Python began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live
        allow_unencodable(getattr(sys, name))
    try:
        cli(standalone_mode=True)
    except (KeyboardInterrupt, _InterruptedError):
        with contextlib.suppress(OSError):  # a second Ctrl-C is welcome to end us sooner
            after = "\n" * sys.stderr.isatty()  # the terminal has written ^C
            echo(f"{after}saebench: interrupted", err=True)
        sys.exit(130)
    except UserError as error:
        echo(f"saebench: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:
        message = environment_error_message(error)
        if message is None:
            raise
        echo(f"saebench: {message}", err=True)
        sys.exit(PreflightError.exit_code)
