"""The views of a sweep that MLflow's page of runs lists; tests/browser opens them in a real one."""

from __future__ import annotations

import json

from saebench.tracking.views import page, tags, varied

SPEC = {
    "sae": [
        {"type": "topk", "k": [16, 32], "expansion_factor": 4.0, "tied": False},
        {"type": "batchtopk", "k": [16.0, 32.0], "expansion_factor": 8.0, "tied": False},
    ],
    "train": {"samples": 1000, "lr": {"low": 1e-4, "high": 1e-2, "log": True}, "batch_size": [64, 128]},
    "seeds": [0, 1],
    "search": {"objective": "eval/mse", "direction": "minimize"},
}


def states(spec: dict) -> dict[str, dict]:
    return {json.loads(v)["name"]: json.loads(json.loads(v)["state"]) for v in tags("demo", spec, 1.5).values()}


def test_varied_are_choices_ranges_and_what_differs_between_arms() -> None:
    assert varied(SPEC) == ["type", "k", "dict_size", "lr", "batch_size", "seed"]


def test_one_arm_at_one_point_varies_nothing() -> None:
    assert varied({"sae": [{"type": "topk", "k": 16}], "train": {"lr": 1e-3}, "seeds": [0]}) == []


def test_what_one_arm_alone_gives_varies() -> None:
    assert varied({"sae": [{"type": "topk", "k": 16}, {"type": "jumprelu", "target_l0": 16}]}) == [
        "type",
        "k",
        "target_l0",
    ]


def test_a_view_has_the_objective_first_and_every_varied_param() -> None:
    found = states(SPEC)
    assert set(found) == {"demo: trials", "demo: strata"}
    columns = found["demo: trials"]["selectedColumns"]
    assert columns[:4] == [f"metrics.`eval/{key}`" for key in ("mse", "fvu", "l0", "dead_fraction")]
    assert {f"params.`{key}`" for key in varied(SPEC)} < set(columns)
    assert found["demo: trials"]["orderByKey"] == "metrics.`eval/mse`"
    assert found["demo: trials"]["groupBy"] is None


def test_the_curves_of_an_error_have_a_logarithmic_axis_and_others_not() -> None:
    other = {**SPEC, "search": {"objective": "eval/cosine", "direction": "maximize"}}
    scales = [
        chart["scaleType"]
        for spec in (SPEC, other)
        for chart in states(spec)["demo: trials"]["compareRunCharts"]
        if chart["type"] == "LINE"
    ]
    assert scales == ["log", "linear"]


def test_strata_are_means_over_complete_trials_alone() -> None:
    state = states(SPEC)["demo: strata"]
    assert state["groupBy"]["groupByKeys"] == [{"mode": "tag", "groupByData": "saebench.stratum"}]
    assert "`saebench.state` = 'complete'" in state["searchFilter"]


def test_the_page_names_a_tag_that_is_written() -> None:
    key = page("7", "demo", "strata").split("viewStateShareKey=")[1].split("&")[0]
    assert f"mlflow.sharedViewState.{key}" in tags("demo", SPEC, 1.5)


def test_a_view_that_was_never_saved_is_not_opened() -> None:
    assert page("7", "demo", saved=tags("demo", SPEC, 1.5)) == page("7", "demo")
    assert page("7", "demo", saved=["mlflow.experimentKind"]) == "/#/experiments/7/runs?workflowType=machine_learning"
    assert "ShareKey" not in page("7", "demo", saved=tags("other", SPEC, 1.5))


def test_a_sweep_of_very_many_params_still_fits_in_a_tag() -> None:
    wide = {**SPEC, "train": {f"a_rather_long_field_{i}": [1, 2] for i in range(200)}}
    assert all(len(value) <= 5000 for value in tags("demo", wide, 1.5).values())
