"""One training that serves several k, in the tables and in the verdict."""

from __future__ import annotations

import math

import pytest
from sweep_data import frame_of, simulate

from saebench.report.document import Report
from saebench.report.nested import note, with_levels
from saebench.report.record import Record


def trials():
    """batchtopk at 8, 16 and 32; hierarchical_topk trained at 32 alone, 4% better there, 10% worse at 16."""
    found = simulate({"batchtopk": 1.0}, levels=(8, 16, 32), widths=(1536,), seeds=(0, 1, 2), points=1)
    nested = simulate({"hierarchical_topk": 0.96}, levels=(32,), widths=(1536,), seeds=(0, 1, 2), points=1)
    for trial in found + nested:
        trial["metrics"] |= {k.replace("eval/", "test/"): v for k, v in trial["metrics"].items()}
    plain = {(t["params"]["k"], t["seed"]): t["metrics"]["test/fvu"] for t in found}
    for number, trial in enumerate(nested, len(found)):
        trial["trial"] = number
        for k, factor in ((4, 2.0), (8, 1.2), (16, 1.1)):
            base = plain.get((k, trial["seed"]), 1.0)
            trial["metrics"] |= {f"test/fvu_at/{k}": factor * base, f"test/l0_at/{k}": float(k)}
        trial["metrics"] |= {"test/fvu_at/32": trial["metrics"]["test/fvu"], "test/l0_at/32": 32.0}
    return found + nested


def test_a_trial_fills_the_row_of_every_level_that_another_arm_has() -> None:
    report = Report(Record(frame_of(trials())))
    rows = report.table("strata").frame.set_index(["arm", "level"])
    assert [level for arm, level in rows.index if arm == "hierarchical_topk"] == [8, 16, 32], "no arm has k = 4"
    ratio = rows.loc[("hierarchical_topk", 16), "fvu"] / rows.loc[("batchtopk", 16), "fvu"]
    assert ratio == pytest.approx(1.1)
    assert rows.loc[("hierarchical_topk", 16), "seeds"] == 3
    assert rows.loc[("hierarchical_topk", 16), "chosen_by"] == "its trials at k=32"
    assert math.isnan(rows.loc[("hierarchical_topk", 16), "dead_fraction"]), "not measured there"
    said = "hierarchical_topk at k = 8, 16: the same trials as at k = 32, used with fewer latents."
    assert said in report.table("strata").note
    assert len(report.frame) == 12, "no trial is counted twice"


def test_a_trial_of_hundreds_of_metrics_fills_levels_without_a_warning() -> None:
    found = trials()
    for trial in found:
        trial["metrics"] |= {f"test/own_{i}": float(i) for i in range(300)}
    whole = Report(Record(frame_of(found))).frame
    frame = with_levels(whole)
    rows = frame[frame["nested_in"].notna()]
    assert len(rows) == 6
    assert rows["test/own_7"].isna().all()
    assert list(rows["level"].unique()) == [8.0, 16.0]
    assert list(frame.columns)[:5] == list(whole.columns)[:5]


def test_the_verdict_pairs_those_rows_and_other_metrics_only_where_they_were_measured() -> None:
    report = Report(Record(frame_of(trials())))
    (judged,) = report.judged
    assert [s.level for s in judged["fvu"].strata] == [8, 16, 32]
    sign = 1 if judged["fvu"].a == "hierarchical_topk" else -1
    assert [sign * s.mean > 0 for s in judged["fvu"].strata] == [True, True, False]
    assert [s.level for s in judged["dead_fraction"].strata] == [32]


def test_a_level_at_which_the_arm_was_trained_is_its_own() -> None:
    found = trials()
    own = simulate({"hierarchical_topk": 0.9}, levels=(16,), widths=(1536,), seeds=(0, 1, 2), points=1)
    for number, trial in enumerate(own, len(found)):
        trial["trial"] = number
        trial["metrics"] |= {k.replace("eval/", "test/"): v for k, v in trial["metrics"].items()}
    frame = Report(Record(frame_of(found + own))).frame
    expanded = with_levels(frame)
    assert set(expanded.loc[expanded["nested_in"].notna(), "level"]) == {8}


def test_a_sweep_without_such_a_type_is_left_as_it_is() -> None:
    frame = Report(Record(frame_of(simulate()))).frame
    assert with_levels(frame) is frame
    assert note(frame) == ""
