"""Options that several commands share: one name, one help text."""

from __future__ import annotations

from pathlib import Path

import click

set_option = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key, such as train.samples=1e5; repeatable.",
)
cache_option = click.option(
    "--cache-dir", metavar="DIR", help="Embedding cache (default: SAEBENCH_CACHE, else the user's)."
)
runs_option = click.option(
    "--runs-dir", metavar="DIR", help="Directory of the sweeps (default: SAEBENCH_RUNS, else ./runs)."
)
out_option = click.option(
    "-o", "--out", type=click.Path(path_type=Path), metavar="FILE", help="Write there instead of printing."
)
uri_option = click.option("--tracking-uri", metavar="URI", help="Read this MLflow server instead of the sweep's own.")
plain_option = click.option("--plain", is_flag=True, help="Print timestamped lines instead of a live screen.")
where_option = click.option(
    "--where", multiple=True, metavar="KEY=VALUE", help="Only trials with this value; repeatable."
)
