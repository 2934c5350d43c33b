"""The headline in plain words, the leader of every level, and the last lines of a sweep."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sweep_data import frame_of, simulate

from saebench.report.closing import closing
from saebench.report.comparison import Comparison
from saebench.report.document import Report
from saebench.report.headline import headline, leaders
from saebench.report.read import Record


def report_of(**options: object) -> Report:
    return Report(Record(frame_of(simulate(**options))))


def test_a_difference_a_draw_and_nothing_to_compare() -> None:
    assert headline(report_of()) == "batchtopk reconstructs better than topk"
    one_seed = report_of(seeds=(0,))
    assert headline(one_seed) == "Not decided between batchtopk and topk"
    assert headline(report_of(arms={"topk": 1.0})) == "One arm, topk: nothing to compare"
    frame = frame_of(simulate())
    assert headline(Report(Record(frame.iloc[:0]))) == "No trial has a result yet"


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("better", "batchtopk reconstructs better than topk"),
        ("worse", "topk reconstructs better than batchtopk"),
        ("equal", "No difference found between batchtopk and topk: equal within 1%"),
        ("small", "batchtopk and topk differ by too little to matter"),
        ("same", "batchtopk and topk give the same results"),
        ("undecided", "Not decided between batchtopk and topk"),
        ("not compared", "The arms could not be compared: they have no sparsity in common"),
    ],
)
def test_every_outcome_has_its_words(monkeypatch: pytest.MonkeyPatch, outcome: str, said: str) -> None:
    report = report_of()
    pair = _Told(replace(report.comparisons[0], margin=0.01), outcome)
    monkeypatch.setattr(report, "judged", [{"fvu": pair}])
    assert headline(report) == said


class _Told:
    """A comparison with an outcome that it is told."""

    def __init__(self, comparison: object, outcome: str) -> None:
        self._comparison, self.outcome = comparison, outcome

    def __getattr__(self, name: str) -> object:
        found = getattr(Comparison, name, None)
        return found.fget(self) if isinstance(found, property) else getattr(self._comparison, name)


def test_of_several_arms_who_beats_all_is_best_and_who_beats_some_is_not() -> None:
    assert headline(report_of(arms={"topk": 1.0, "batchtopk": 0.9, "jumprelu": 1.1})) == (
        "batchtopk reconstructs best of 3 arms"
    )
    close = report_of(arms={"topk": 1.0, "batchtopk": 1.0, "jumprelu": 1.3})
    assert headline(close).startswith(("batchtopk reconstructs better than jumprelu; not told apart from topk",
                                       "topk reconstructs better than jumprelu; not told apart from batchtopk",
                                       "topk reconstructs better than batchtopk"))  # fmt: skip
    assert headline(report_of(arms={"topk": 1.0, "batchtopk": 1.0, "gated": 1.0}, seeds=(0,))) == (
        "Not decided between batchtopk, topk and gated"
    )


def test_several_arms_that_are_all_equal_are_not_called_undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(arms={"topk": 1.0, "batchtopk": 1.0, "gated": 1.0})
    told = [{"fvu": _Told(c, "equal")} for c in report.comparisons]
    monkeypatch.setattr(report, "judged", told)
    assert headline(report).startswith("No difference found between ")
    monkeypatch.setattr(report, "judged", [*told[:2], {"fvu": _Told(told[2]["fvu"], "undecided")}])
    assert headline(report).startswith("Not decided between ")


def test_the_leader_of_a_level_has_its_least_fvu_and_k_and_target_l0_are_one_level() -> None:
    report = report_of(arms={"topk": 1.0, "jumprelu": 0.9}, levels=(16, 32))
    found = leaders(report)
    assert [(row["arm"], row["level"]) for row in found] == [("jumprelu", 16), ("jumprelu", 32)]


def test_a_sweep_ends_with_its_headline_verdict_and_a_line_per_level() -> None:
    lines = closing(report_of())
    assert lines[0] == "batchtopk reconstructs better than topk."
    assert lines[1].startswith("batchtopk reconstructs better than topk at equal L0: FVU ")
    assert [line.partition(":")[0] for line in lines[2:]] == [f"best at k={k}" for k in (16, 32, 64)]
    assert all("trial demo/" in line and "(mean over 3 comparing seeds)" in line for line in lines[2:])
    assert not any("not decided" in line for line in lines[2:])


def test_the_best_of_a_level_is_not_called_better_than_the_verdict_says(monkeypatch: pytest.MonkeyPatch) -> None:
    report = report_of(seeds=(0,))
    lines = closing(report)
    assert "(no interval over seeds: one comparing seed)" in lines[1]
    assert all(" (not decided), FVU " in line and "1 comparing seed)" in line for line in lines[2:])
    told = [{"fvu": _Told(replace(report.comparisons[0], margin=0.01), "equal")}]
    monkeypatch.setattr(report, "judged", told)
    assert all(" (equal within 1%), FVU " in line for line in closing(report)[2:])
    alone = closing(report_of(arms={"topk": 1.0}))
    assert not any("not decided" in line for line in alone)
