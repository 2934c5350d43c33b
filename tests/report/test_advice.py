"""Which k, which width: what the curves say, where they say nothing, and the spec of the next sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from sweep_data import frame_of, simulate

from saebench.plan import make_plan
from saebench.report.advice import Advice, Curve, Point, advise, curves, peak
from saebench.report.advice_spec import next_levels, next_spec
from saebench.report.advice_text import chart, spec_text, text
from saebench.report.document import Report
from saebench.report.record import Record
from saebench.spec import parse_spec

STABLE = {2: 0.60, 4: 0.66, 8: 0.70, 16: 0.68, 32: 0.52}
"""As measured on known truth, whose L0 is 8."""


def curve(stable=STABLE, arm="topk", width=256, dead=0.02, c_dec=None, seeds=2, **more):
    values = c_dec or {level: 0.09 + 0.1 / level for level in stable}
    points = [
        Point(float(level), float(level), seeds, dead,
              {"stability": s, "c_dec": values[level], "fvu": 1 / level, **more}, 0.0, 0.1)
        for level, s in stable.items()
    ]  # fmt: skip
    return Curve(arm, "k", float(width), tuple(points))


def test_the_maximum_of_stability_is_advised_with_its_evidence() -> None:
    said = advise([curve(), curve(arm="batchtopk")])
    assert said.l0 == pytest.approx((8 / 1.5, 12))
    assert said.lines[0].startswith("L0 of about 8: there the latents of 2 of 2 curves are the most stable")
    mixed = "topk, 256 latents: at L0 2 latents mix: c_dec 0.140 against 0.102 at the advised L0"
    assert f"{mixed} and a random floor of 0.100" in said.lines
    assert "topk, 256 latents: L0 16 would lower FVU by 50%" in said.lines


def test_levels_that_seeds_cannot_tell_apart_are_no_maximum() -> None:
    """A range of 0.04 over pairs of seeds is a noise of 0.02: 8 and 16 are the same, and both are inside."""
    noisy = curve()
    noisy = Curve(
        "topk", "k", 256.0, tuple(Point(p.level, p.l0, 3, p.dead, p.values, 0.02, p.floor) for p in noisy.points)
    )
    found = peak(noisy)
    assert found is not None
    assert (found.low, found.high, found.at, found.side) == (8, 16, 8, "inside")
    assert peak(curve(dict.fromkeys(STABLE, 0.7))) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([curve({8: 0.7})], "topk, 256 latents: one level of k, so there is no curve along it"),
        ([curve({8: 0.7, 16: 0.6})], "stability is known at 2 of 2 levels; 3 make a curve"),
        ([curve(dict.fromkeys(STABLE, math.nan), seeds=1)], "stability needs two seeds that measure the same point"),
        ([curve(dict.fromkeys(STABLE, 0.7))], "stability does not differ between the levels beyond noise"),
        ([curve(dead=1.0)], "all latents are dead"),
        ([curve({4: 0.5, 8: 0.6, 16: 0.7})], "stability is largest at the highest level (L0 16): no optimum inside"),
        ([curve({2: 0.5, 4: 0.7, 8: 0.6}, arm="a"), curve({8: 0.6, 16: 0.7, 32: 0.5}, arm="b")],
         "the arms do not agree on the L0 of the most stable latents"),
        ([], ""),
    ],
)  # fmt: skip
def test_where_the_data_do_not_say_nothing_is_advised_and_the_reason_is(given: list[Curve], why: str) -> None:
    said = advise(given)
    assert said.l0 is None
    assert any(why in line for line in said.silent) == bool(why)
    assert not any("L0 of about" in line for line in said.lines)


def test_a_width_with_many_dead_latents_is_dropped_where_a_narrower_one_suffices() -> None:
    said = advise([curve(width=256), curve(width=4096, dead=0.46)])
    assert "topk, 4096 latents: 46% dead; 256 latents suffice" in said.lines
    assert said.widths_to_drop == (4096,)
    assert advise([curve(width=4096, dead=0.46)]).widths_to_drop == (), "one width only"


def test_the_next_levels() -> None:
    assert next_levels([2, 4, 8, 16, 32], Advice((), l0=(8 / 1.5, 12))) == [5, 8, 12]
    assert next_levels([8, 16], Advice((), extend="higher")) == [16, 32, 64]
    assert next_levels([8, 16], Advice((), extend="lower")) == [2, 4, 8]
    assert next_levels([8, 16], Advice(())) == [8, 16]


SPEC = {
    "name": "s",
    "data": {"model": "m", "dataset": {"path": "fancyzhx/ag_news"}, "num_examples": 800},
    "sae": [{"type": "topk", "k": [2, 4, 8, 16, 32], "dict_size": [48, 96]},
            {"type": "vanilla", "target_l0": [4, 8], "expansion_factor": 4}],
    "train": {"samples": 2000, "lr_factor": {"low": 0.25, "high": 4, "log": True}},
    "search": {"sampler": "qmc", "points": 3},
    "seeds": [0, 1],
}  # fmt: skip


def test_the_next_spec_can_be_planned_and_searches_what_is_left() -> None:
    advised = Advice((), l0=(8 / 1.5, 12), widths_to_drop=(96,))
    source = SimpleNamespace(lock={"spec": json.loads(json.dumps(parse_spec(SPEC).plain()))})  # as lock.json has it
    report = SimpleNamespace(record=SimpleNamespace(sources=[source]))
    spec = parse_spec(yaml.safe_load(spec_text(cast("Report", report), advised)))
    assert spec.name == "s-next"
    plan = make_plan(spec, 16)
    assert [stratum.id for stratum in plan.strata[:3]] == ["topk-k5-n48", "topk-k8-n48", "topk-k12-n48"]
    assert len(plan.strata) == 6
    assert spec.train["lr_factor"].low == 0.25  # type: ignore[union-attr]


def test_the_next_spec_keeps_embeddings_of_ones_own_and_controls(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((800, 16), np.float32))
    np.save(tmp_path / "y.npy", np.array(["a", "b"] * 400))
    given = {
        **SPEC,
        "data": {
            "embeddings": str(tmp_path / "x.npy"),
            "labels": str(tmp_path / "y.npy"),
            "holdout": {"validation": 0.05, "test": 0.15},
        },
        "sae": [{"type": "topk", "k": [4, 8, 16], "dict_size": 48, "control": c} for c in (None, "frozen_decoder")],
        "search": {"sampler": "grid", "strata": ["type", "k", "dict_size", "control"]},
        "train": {"samples": 2000},
    }
    spec = parse_spec(next_spec(parse_spec(given).plain(), Advice((), l0=(8 / 1.5, 12))))
    assert [stratum.id for stratum in make_plan(spec, 16).strata] == [
        f"topk-k{k}-n48{control}" for control in ("", "-frozen_decoder") for k in (5, 8, 12)
    ]
    assert spec.data.labels is not None


def test_a_report_says_so_in_words_and_controls_are_no_evidence() -> None:
    trials = simulate(levels=(8, 16, 32), widths=(1536,), points=1)
    report = Report(Record(frame_of(trials)))
    found = curves(report.chosen, [])
    assert [c.name for c in found] == ["topk, 1536 latents", "batchtopk, 1536 latents"]
    assert [p.level for p in found[0].points] == [8, 16, 32]
    controlled = report.chosen.assign(
        control=["frozen_decoder" if arm == "topk" else None for arm in report.chosen["arm"]]
    )
    assert [c.arm for c in curves(controlled, [])] == ["batchtopk"]
    said = text(report)
    assert "Which k: the data do not decide it." in said
    assert [panel.title for panel in chart(report).panels] == ["FVU"]


@pytest.mark.parametrize("spec", [{}, {"name": "s"}, {**SPEC, "sae": ["topk"]}, {**SPEC, "search": None}, ["s"]])
def test_a_lock_that_holds_no_whole_spec_gives_no_next_one(spec: Any) -> None:
    source = SimpleNamespace(lock={"spec": spec})
    report = SimpleNamespace(record=SimpleNamespace(sources=[source]))
    assert spec_text(cast("Report", report), Advice(())) == ""
