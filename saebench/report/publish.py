"""Write the results of a sweep to its run in MLflow: description, tags, metrics, verdict.md and the page."""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from saebench.report.columns import best_trial, sparsity
from saebench.report.formats import markdown, md
from saebench.report.headline import headline, leaders
from saebench.report.html import page
from saebench.runs.tags import Tag
from saebench.tracking.mlflow_errors import reading
from saebench.tracking.server import open_reader

if TYPE_CHECKING:
    from saebench.report.document import Report
    from saebench.report.sources import Source

TAG = 5000
"""Most characters of a tag that every MLflow server accepts."""
BATCH = 100
"""Most metrics or tags per request; MLflow accepts no more tags."""
FOLDER = "report"
"""Folder of the run's artifacts."""


def publish(report: Report, folder: Path | None = None) -> list[str]:
    """Write the verdict to the parent run of every sweep of `report`, with the files in `folder`; return the artifacts'
    names. Raises UserError if the server refuses."""
    with tempfile.TemporaryDirectory() as scratch:
        files = folder or Path(scratch)
        (files / "verdict.md").write_text(markdown(report, []), encoding="utf-8")
        (files / "report.html").write_text(page(report), encoding="utf-8")
        for source in report.record.sources:
            _write(report, source, files)
        return sorted(f"{FOLDER}/{path.name}" for path in files.iterdir())


def _write(report: Report, source: Source, files: Path) -> None:
    from mlflow.entities import Metric, RunTag

    failed = "\n".join(check.text for check in report.checks if check.passed is False)
    tags = {
        Tag.REPORT: report.verdict,
        Tag.CHECKS: failed or "all passed",
        "mlflow.note.content": description(report, source),
        **dict(_best_tags(report, source.name)),
    }
    now = round(1000 * time.time())
    numbers = [Metric(name, value, now, 0) for name, value in _numbers(report, source.name)]
    client = open_reader(source.uri)
    with reading(source.uri):
        client.log_artifacts(source.run_id, str(files), FOLDER)
        client.log_batch(
            source.run_id, metrics=numbers[:1000], tags=[RunTag(k, v[:TAG]) for k, v in tags.items()][:100]
        )


def description(report: Report, source: Source) -> str:
    """Return the text of MLflow's page of the run: the sweep's own description, the verdict, checks that failed;
    Markdown."""
    own = report.record.descriptions.get(source.name, "")
    failed = [f"- {md(check.text)}" for check in report.checks if check.passed is False]
    lines = [md(own), f"**{md(headline(report))}.** {md(report.verdict)}"]
    lines += ["\n".join(["Before you use it:", "", *failed])] if failed else []
    return "\n\n".join(filter(None, [*lines, f"Whole report: artifacts, {FOLDER}/report.html"]))


def _best_tags(report: Report, sweep: str) -> Iterator[tuple[str, str]]:
    """The best trial of every level of sparsity."""
    for row in leaders(report):
        if row["sweep"] == sweep:
            yield f"{Tag.BEST}.{_key(sparsity(row))}", f"trial {best_trial(row)}, {row['arm']}, FVU {row['fvu']:.4g}"


def _numbers(report: Report, sweep: str) -> Iterator[tuple[str, float]]:
    """best/fvu_k16: the least mean FVU at that level; floor/kmeans/fvu_k16_n1536: every floor at its size."""
    for row in leaders(report):
        if row["sweep"] == sweep and math.isfinite(row["fvu"]):
            yield f"best/fvu_{_key(sparsity(row))}", float(row["fvu"])
    for row in report.floors.rows:
        if row["sweep"] == sweep:
            for name in ("fvu", "knn_overlap_at_10", "probing_auc_k5"):
                if name in row:
                    yield f"floor/{row['floor']}/{name}_k{row['k']}_n{row['dict_size']}", float(row[name])


def _key(text: str) -> str:
    """A level as part of a key: k=16 becomes k16."""
    return re.sub(r"[^\w.-]", "", text) or "all"
