"""Time to an FVU: what its seconds count, that it resumes, and when a goal is reached."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "experiments" / "benchmarks"
NAMES = ("peers", "corpora")
"""Modules of the recipe that share their names with the benchmarks' and the tests' own."""
others = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
sys.path.insert(0, str(BENCHMARKS))
try:
    import time_to_fvu
finally:
    sys.path.remove(str(BENCHMARKS))
    for name in NAMES:
        sys.modules.pop(name, None)
    sys.modules.update(others)


def test_a_curve_leaves_the_measuring_out_of_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 batches of 4 rows, a second each; every mark takes 100 seconds to measure."""
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "process_time", lambda: clock["now"])

    def spend(seconds: float) -> dict[str, float]:
        clock["now"] += seconds
        return {"fvu": 0.5, "l0": 8.0}

    store: Any = SimpleNamespace(next_batch=lambda: torch.zeros(4, 1))
    marks = time_to_fvu.curve(lambda _: spend(1), lambda: spend(100), store, 38)
    assert [mark.examples for mark in marks] == [*range(4, 37, 4), 38], "the last batch is cut to the budget"
    assert [mark.seconds for mark in marks] == list(range(1, 11))


def test_a_curve_that_was_written_is_not_trained_again(tmp_path: Path) -> None:
    trained: list[int] = []

    def train(setting: dict[str, Any]) -> list[time_to_fvu.Mark]:
        trained.append(setting["seed"])
        return [time_to_fvu.Mark(10, 1.0, 0.5)]

    first = time_to_fvu.Book(tmp_path / "runs.jsonl", train)
    assert first({"kind": "topk", "seed": 0}) == first({"seed": 0, "kind": "topk"})
    again = time_to_fvu.Book(tmp_path / "runs.jsonl", train)
    assert again({"kind": "topk", "seed": 0}) == [time_to_fvu.Mark(10, 1.0, 0.5)]
    again({"kind": "topk", "seed": 1})
    assert trained == [0, 1]


def test_the_goal_is_the_best_peer_and_what_most_seeds_miss_is_not_reached() -> None:
    """Final FVUs of the peers 0.4 and 0.6: ours is at 0.4 after 20 examples and 2 s, the worse peer never. A mark at
    twice the best peer's L0 does not count."""
    mark = time_to_fvu.Mark
    found = {
        "saebench, 20 examples": [[mark(10, 1.0, 0.2, 16.0), mark(20, 2.0, 0.3)]] * 3,
        "A": [[mark(10, 3.0, 0.6, 9.0), mark(20, 6.0, 0.4, l0)] for l0 in (7.9, 8.0, 8.3)],
        "B": [[mark(20, 4.0, 0.4)], [mark(20, 4.0, 0.6)], [mark(20, 4.0, 0.7)]],
    }
    head, _, *rows = time_to_fvu.table(found, "topk")
    assert "examples to 0.4000" in head
    assert rows == [
        "| saebench, 20 examples | 0.3000 |  | 2.0 | 20 | 2.0 |",
        "| A | 0.4000 | 8.0 | 6.0 | 20 | 6.0 |",
        "| B | 0.6000 |  | 4.0 | not reached | |",
    ]
