"""The default report: no word is cut."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from sweep_data import frame_of, simulate

from saebench.report.document import Report
from saebench.report.record import Record
from saebench.report.text import SCREEN, show


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
