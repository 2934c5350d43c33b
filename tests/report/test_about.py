"""What stands under a report's name."""

from __future__ import annotations

import pandas as pd

from saebench.report.about import about


def _frame(**columns: list) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_a_report_says_its_question_its_data_and_its_budget() -> None:
    frame = _frame(
        seed=[0, 1], samples=[60000, 60000],
        **{"data.model": ["m"] * 2, "data.dataset": ["mine.jsonl"] * 2, "data.split": ["train"] * 2,
           "data.num_examples": [2000] * 2, "final/examples": [385.0, 385.0]},
    )  # fmt: skip
    assert about({"mine": "Which one?\n Really."}, frame) == [
        "Which one? Really.",
        "m on mine.jsonl [train]; up to 2,000 texts, 385 test texts; 60,000 examples per trial; seeds 0, 1",
    ]


def test_sweeps_together_are_told_apart_and_differing_values_all_named() -> None:
    frame = _frame(seed=[0, 0], samples=[1e5, 2e5])
    assert about({"a": "first", "b": "second", "c": ""}, frame) == [
        "a: first",
        "b: second",
        "100,000 and 200,000 examples per trial; seed 0",
    ]


def test_what_no_trial_has_is_left_out() -> None:
    frame = _frame(seed=[None], **{"data.model": [None], "eval/examples": [float("nan")]})
    assert about({"a": "  "}, frame) == []
    assert about({"a": ""}, _frame(seed=list(range(9)))) == ["seeds 0, 1, 2, 3, 4, 5, ..."]


def test_embeddings_of_ones_own_have_no_model_and_no_dataset() -> None:
    params = {"data.model": "/some/where/vectors.npy", "data.dataset": "vectors.npy", "data.split": "train"}
    assert about({}, pd.DataFrame([params])) == ["embeddings of vectors.npy"]
