"""The default report: no word is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sweep_data import frame_of, simulate

from saebench.report.document import Report
from saebench.report.record import Record
from saebench.report.text import SCREEN, show


@pytest.mark.parametrize("arms", [{"topk": 1.0}, {"topk": 1.0, "batchtopk": 0.95}])
@pytest.mark.parametrize("width", [80, 100])
def test_a_failed_check_stands_whole_or_without_its_advice(width: int, arms: dict[str, float]) -> None:
    report = Report(Record(frame_of(simulate(seeds=(0,), arms=arms))))
    out = io.StringIO()
    show(report, Console(file=out, width=width))
    shown = out.getvalue()
    assert len(shown.splitlines()) <= SCREEN
    assert max(map(len, shown.splitlines())) <= width
    said = shown[shown.index("Before you use it") :].partition("\n\n")[0]
    assert "…" not in said
    flat = " ".join(said.split())
    for check in report.checks:
        if not check.passed:
            part = flat[flat.index(check.name) :]
            assert part.startswith(check.text) or check.text.startswith(part.partition(" (--full)")[0])


@pytest.mark.parametrize("width", [80, 100])
def test_a_line_that_does_not_fit_ends_between_words(width: int) -> None:
    description = " ".join(f"description{i}" for i in range(12))
    report = Report(Record(frame_of(simulate(seeds=(0,))), descriptions={"demo": description}))
    out = io.StringIO()
    show(report, Console(file=out, width=width))
    lines = out.getvalue().splitlines()
    assert len(lines) <= SCREEN
    cut = [line for line in lines if line.endswith("…")]
    assert cut
    wide = io.StringIO()
    show(report, Console(file=wide, width=1000))
    words = set(wide.getvalue().split())
    assert all(line.endswith(" …") and line.split()[-2] in words for line in cut)
