"""ui: MLflow's pages about a sweep."""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import click

from saebench.cli.complete import complete_sweeps
from saebench.cli.options import runs_option, uri_option
from saebench.cli.output import echo
from saebench.errors import PreflightError, UserError

if TYPE_CHECKING:
    from saebench.report.sources import Source


@click.command()
@click.argument("sweep", required=False, metavar="[SWEEP]", shell_complete=complete_sweeps)
@click.option("--port", type=click.IntRange(1, 65535), help="Default: 5000, or the next that is free.")
@click.option("--open/--no-open", "browse", default=None, help="Open a browser (default: on a terminal).")
@runs_option
@uri_option
def ui(
    sweep: str | None, port: int | None, browse: bool | None, runs_dir: str | None, tracking_uri: str | None
) -> None:
    """Open MLflow's pages about SWEEP.

    Starts `mlflow ui` on 127.0.0.1, prints its address once it answers and opens a browser; Ctrl-C ends it.
    """
    from saebench.cli.browser import open_page
    from saebench.cli.serve import serve
    from saebench.report.sources import find
    from saebench.runs.secrets import mask
    from saebench.tracking import views

    source = find([sweep] if sweep else [], runs_dir, tracking_uri)[0]
    page = views.page(source.experiment_id, source.name, saved=_experiment_tags(source))
    browse = sys.stdout.isatty() if browse is None else browse
    if source.uri.startswith(("http://", "https://")):
        address = f"{mask(source.uri).rstrip('/')}{page}"
        echo(address)
        if browse:
            open_page(address)
        return
    port = _port(port)
    address = f"http://127.0.0.1:{port}{page}"

    def ready() -> None:
        echo(f"{address}   ({mask(source.uri)}; Ctrl-C ends it)")
        if browse:
            open_page(address)

    echo(f"starting MLflow's pages on {mask(source.uri)} ...", err=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    # in the environment: `ps` shows a command line, with any password in it, to every user of the machine
    ended = serve(command, {"MLFLOW_BACKEND_STORE_URI": source.uri}, f"http://127.0.0.1:{port}/health", ready)
    sys.exit(ended)


def _experiment_tags(source: Source) -> list[str] | None:
    """Return their names; None if the server does not answer (its page shows why)."""
    from saebench.tracking.mlflow_errors import reading
    from saebench.tracking.server import open_reader

    try:
        client = open_reader(source.uri)
        with reading(source.uri):
            return list(client.get_experiment(source.experiment_id).tags)
    except PreflightError:
        if source.uri.startswith(("http://", "https://")):
            return None
        raise


def _port(wanted: int | None) -> int:
    """Return `wanted` if it is free, else raise UserError; by default the first free port from 5000."""
    for port in [wanted] if wanted else range(5000, 5100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise UserError(f"--port {wanted}: in use" if wanted else "ports 5000 to 5099 are in use; give --port")
