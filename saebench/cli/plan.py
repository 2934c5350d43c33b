"""plan: what a sweep would do, and how long it would take."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from saebench.cli.options import cache_option, runs_option, set_option
from saebench.cli.output import echo
from saebench.errors import UserError
from saebench.plan import Plan, Stratum, make_plan
from saebench.runs import paths as places
from saebench.runs.paths import SweepPaths
from saebench.spec import Range, SweepSpec, load_spec

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from saebench.cli.outlook import Corpus


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@runs_option
@cache_option
@click.option("--no-measure", is_flag=True, help="Do not time a training step; estimate no minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def plan(
    spec: Path,
    overrides: tuple[str, ...],
    runs_dir: str | None,
    cache_dir: str | None,
    no_measure: bool,
    as_json: bool,
) -> None:
    """Show what a sweep of SPEC would do; start nothing.

    Prints strata, points and trials, the contents of local files, what will be encoded, the expected minutes (from a
    training step timed here), and warnings.
    """
    show_plan(load_spec(spec, overrides), runs_dir, cache_dir, measured=not no_measure, as_json=as_json)


def show_plan(
    spec: SweepSpec, runs_dir: str | None, cache_dir: str | None, *, measured: bool = True, as_json: bool = False
) -> None:
    """Print the plan of a spec. Raises DataError for local files that cannot be read in the given format."""
    from saebench.cli import outlook
    from saebench.forecast import advice
    from saebench.terminal.console import make_console

    entry = _cached(spec, cache_dir)
    plan = make_plan(spec, entry.get("d_in"))
    corpus = outlook.corpus(spec, entry)
    there = outlook.existing(spec, SweepPaths(places.runs_dir(runs_dir) / spec.name))
    if measured and sys.stderr.isatty():
        echo("timing a training step (--no-measure leaves it out)", err=True)
    time = outlook.minutes(plan, corpus, entry["cached"] is True) if measured else None
    warnings = [*outlook.warnings(plan, corpus)]
    if as_json:
        more = {"texts": corpus, "minutes": time}
        found = _as_json(plan, entry) | {key: asdict(value) if value else None for key, value in more.items()}
        echo(json.dumps({**found, "existing": there, "warnings": warnings}, indent=1))
        return
    lines = _lines(plan, entry, corpus)
    if corpus is not None:
        lines.insert(0, ("texts", outlook.about_texts(spec, corpus)))
    lines += [("time", outlook.about_time(time))] if time else []
    lines += [("warning", line) for line in warnings]
    lines += [("warning", there)] if there else []
    lines += [("note", line) for line in advice(plan)]
    console = make_console(piped_width=200)  # so that grep finds whole lines
    console.print(_heading(plan))
    console.print(_strata_table(plan))
    console.print(_facts(lines))


def _cached(spec: SweepSpec, given: str | None) -> dict[str, Any]:
    """Return the state of the corpus in the embedding cache: {cached: True | False | None (unknown), dir, d_in}."""
    folder = places.cache_dir(given)
    if not spec.data.cache:
        return {"cached": False, "dir": None}
    try:
        from saebench.stores.cache import find

        entry = find(spec.data, folder)
    except (ImportError, OSError, ValueError, UserError):
        return {"cached": None, "dir": str(folder)}
    if entry is None:
        return {"cached": False, "dir": str(folder)}
    parts = (entry.num_train, entry.num_validation, entry.num_test)
    return {"cached": True, "dir": str(entry.directory), "d_in": entry.d_in, "texts": sum(parts), "parts": parts}


def counts(plan: Plan) -> str:
    strata = "1 stratum" if len(plan.strata) == 1 else f"{len(plan.strata)} strata"
    return f"{strata}, {_count(plan.n_points, 'point')}, {_at_most(plan)}{_count(plan.n_trials, 'trial')}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _at_most(plan: Plan) -> str:
    return "at most " if any(stratum.refine for stratum in plan.strata) else ""


def _heading(plan: Plan) -> Text:
    from rich.text import Text

    description = f": {' '.join(plan.spec.description.split())}" if plan.spec.description else ""
    return Text.assemble((plan.spec.name, "bold"), description)


def _strata_table(plan: Plan) -> Table:
    from rich import box
    from rich.table import Column, Table

    from saebench.forecast import describe_space

    pruned = plan.spec.prune.pruner != "none"
    numbers = [Column(name, justify="right") for name in ("points", "trials")]
    verdicts = [Column("first verdict", justify="right")] if pruned else []
    stratum_column = Column("stratum", no_wrap=True)
    table = Table(stratum_column, "searched", *numbers, *verdicts, box=box.SIMPLE_HEAD, pad_edge=False)
    for stratum in plan.strata:
        verdict = [_verdicts(plan, stratum)] if pruned else []
        trials = f"{_at_most(plan)}{plan.trials_of(stratum)}"
        table.add_row(stratum.id, describe_space(stratum), str(stratum.points), trials, *verdict)
    return table


def _facts(lines: list[tuple[str, str]]) -> Table:
    """Format a label and its text; a long line is wrapped and indented below the text."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for word, said in lines:
        table.add_row(Text(word, {"note": "yellow", "warning": "bold yellow"}.get(word, "")), said)
    return table


def _verdicts(plan: Plan, stratum: Stratum) -> str:
    first = plan.prune_from(stratum)
    if first >= plan.samples:
        return "never"
    if plan.spec.prune.pruner in ("asha", "hyperband"):
        return "rungs " + ", ".join(f"{mark:,}" for mark in plan.rungs(stratum))
    return f"{first:,}"


def _lines(plan: Plan, entry: dict[str, Any], corpus: Corpus | None) -> list[tuple[str, str]]:
    from saebench.forecast import work

    spec, cost = plan.spec, work(plan)
    held_out = f"about {spec.data.num_examples * spec.data.parts.validation:,.0f} validation texts"
    epochs = ""
    if corpus is not None:
        held_out = f"{corpus.validation:,} validation texts"
        epochs = f" ({plan.samples / max(1, corpus.train):,.3g} epochs)"
    seeds = ", ".join(map(str, spec.seeds[:10])) + (", ..." if len(spec.seeds) > 10 else "")
    flops = f", about {cost.train_flops:.2g} FLOPs in the SAEs" if cost.train_flops is not None else ""
    in_all = f"{_at_most(plan)}{cost.train_examples:,}"
    measured = f"; the first searches, the others measure {_REPLICATES[spec.replicate]}"
    replicates = measured if len(spec.seeds) > 1 else ""
    return [
        ("trials", f"{counts(plan)} ({spec.search.sampler}); seeds {seeds}{replicates}"),
        ("encode", _encoding(plan, entry)),
        (
            "train",
            f"{plan.samples:,} examples per trial{epochs}, {in_all} in all{flops}",
        ),
        (
            "evaluate",
            f"{_times(len(plan.marks()))} per trial, every {plan.eval_every:,} examples, on {held_out}; "
            f"objective {spec.search.objective}",
        ),
        ("prune", _pruning(plan)),
        *_keeping(plan),
    ]


_REPLICATES = {"chosen": "the chosen point", "all": "every point"}


def _encoding(plan: Plan, entry: dict[str, Any]) -> str:
    from saebench.forecast import work

    data, cost = plan.spec.data, work(plan)
    width = f"width {plan.d_in}" if plan.d_in is not None else "width not known before the model is loaded"
    size = f", {cost.embedding_bytes / 1e6:,.1f} MB" if cost.embedding_bytes is not None else ""
    if data.embeddings is not None:
        return _own_rows(plan, entry, f"{width}{size}")
    texts = f"up to {data.num_examples:,} texts with {data.model} ({width}{size})"
    if not data.cache:
        return f"{texts} in every trial: data.cache is off"
    if entry["cached"]:
        return f"nothing: {entry['texts']:,} texts are cached in {entry['dir']} ({width})"
    return f"{texts}, once; {_is_cached(entry)} ({entry['dir']})"


def _is_cached(entry: dict[str, Any]) -> str:
    return "not cached yet" if entry["cached"] is False else "the cache could not be read, so they may be cached"


def _own_rows(plan: Plan, entry: dict[str, Any], size: str) -> str:
    """Return the line about precomputed embeddings, which are not encoded."""
    data = plan.spec.data
    if entry["cached"]:
        return f"nothing: {entry['texts']:,} rows of {data.embeddings} are cached in {entry['dir']}"
    rows = f"{data.num_examples:,} rows of {data.embeddings} ({size}) are mapped in place, or copied once"
    return f"nothing: {rows}, if their layout needs it; {_is_cached(entry)} ({entry['dir']})"


def _keeping(plan: Plan) -> list[tuple[str, str]]:
    """Return the size of the SAEs on disk and in MLflow; nothing if their width is unknown."""
    from saebench.forecast import work

    cost, which = work(plan), plan.spec.tracking.log_sae
    if cost.sae_bytes is None or cost.copied_bytes is None:
        return []
    copied = {
        "all": f"as much again in MLflow{_cheaper(cost.copied_bytes)}",
        "best": f"the best of every stratum, {_bytes(cost.copied_bytes)}, also in MLflow",
        "none": "none in MLflow",
    }
    return [("keep", f"{_count(plan.n_trials, 'SAE')}, {_at_most(plan)}{_bytes(cost.sae_bytes)}; {copied[which]}")]


def _cheaper(size: int) -> str:
    return " (tracking.log_sae: best copies one per stratum)" if size > 1e9 else ""


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _pruning(plan: Plan) -> str:
    prune = plan.spec.prune
    extra = {
        "none": "nothing is stopped early",
        "median": f"worse than the median of its stratum, once {prune.startup_trials} trials there are complete",
        "asha": f"not among the best 1/{prune.reduction_factor} at a rung",
        "hyperband": f"not among the best 1/{prune.reduction_factor} at a rung, in several brackets",
        "threshold": f"outside {prune.lower if prune.lower is not None else '-inf'}..{prune.upper}",
        "pareto": f"another trial is {prune.margin:.0%} better in both L0 and FVU",
    }
    return f"{prune.pruner}: {extra[prune.pruner]}" if prune.pruner in extra else prune.pruner


def _as_json(plan: Plan, entry: dict[str, Any]) -> dict[str, Any]:
    from saebench.forecast import advice, work

    return {
        "name": plan.spec.name,
        "d_in": plan.d_in,
        "strata": [_stratum_json(plan, stratum) for stratum in plan.strata],
        "points": plan.n_points,
        "trials": plan.n_trials,
        "seeds": list(plan.spec.seeds),
        "replicate": plan.spec.replicate,
        "marks": list(plan.marks()),
        "cache": entry,
        "work": asdict(work(plan)),
        "notes": advice(plan),
    }


def _stratum_json(plan: Plan, stratum: Stratum) -> dict[str, Any]:
    return {
        "id": stratum.id,
        "type": stratum.type,
        "axes": stratum.axes,
        "fixed": stratum.fixed,
        "space": {n: asdict(v) if isinstance(v, Range) else v for n, v in stratum.space.items()},
        "points": stratum.points,
        "grid": stratum.grid,
        "enqueued": plan.enqueued(stratum),
        "prune_from": plan.prune_from(stratum),
        "rungs": plan.rungs(stratum),
    }
