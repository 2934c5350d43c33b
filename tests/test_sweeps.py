"""Every spec that is shipped loads, plans, agrees with the schema, and says in every trial what it should."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from saebench.config import SAE_CONFIGS, TrialConfig
from saebench.forecast import advice
from saebench.plan import make_plan
from saebench.spec import load_spec, options
from saebench.spec.schema import schema

REPOSITORY = Path(__file__).parent.parent
SHIPPED = sorted([*REPOSITORY.glob("sweeps/*.yaml"), *REPOSITORY.glob("experiments/**/*.yaml")])
STARTER = Path(str(resources.files("saebench.spec").joinpath("starter.yaml")))
SPECS = [path for path in [*SHIPPED, STARTER] if "sae:" in path.read_text(encoding="utf-8")]
SCHEMA = schema()


def invalid(value: Any, rule: dict[str, Any], at: str = "") -> list[str]:
    """What JSON Schema has against a value; knows the keywords that our schema uses, and fails on others."""
    if "$ref" in rule:
        return invalid(value, SCHEMA["$defs"][rule["$ref"].removeprefix("#/$defs/")], at)
    found: list[str] = []
    for keyword, wanted in rule.items():
        if keyword in ("description", "title", "default", "$schema", "$defs"):
            continue
        found += [f"{at}: {keyword}"] * (not KEYWORDS[keyword](value, wanted, rule, at))
    if isinstance(value, dict):
        inner = rule.get("properties", {})
        found += [p for k, v in value.items() if k in inner for p in invalid(v, inner[k], f"{at}.{k}")]
    if isinstance(value, list) and "items" in rule:
        found += [p for i, item in enumerate(value) for p in invalid(item, rule["items"], f"{at}[{i}]")]
    return found


TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
}


def is_type(value: Any, name: str) -> bool:
    if name == "null" or value is None:
        return name == "null" and value is None
    return isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KEYWORDS: dict[str, Any] = {
    "type": lambda v, w, *_: is_type(v, w),
    "const": lambda v, w, *_: v == w,
    "enum": lambda v, w, *_: v in w,
    "pattern": lambda v, w, *_: not isinstance(v, str) or re.search(w, v) is not None,
    "minimum": lambda v, w, *_: not is_number(v) or v >= w,
    "maximum": lambda v, w, *_: not is_number(v) or v <= w,
    "exclusiveMinimum": lambda v, w, *_: not is_number(v) or v > w,
    "exclusiveMaximum": lambda v, w, *_: not is_number(v) or v < w,
    "minItems": lambda v, w, *_: not isinstance(v, list) or len(v) >= w,
    "uniqueItems": lambda v, *_: not isinstance(v, list) or all(x not in v[:i] for i, x in enumerate(v)),
    "required": lambda v, w, *_: not isinstance(v, dict) or all(name in v for name in w),
    "additionalProperties": lambda v, w, rule, _: (
        w is not False or not isinstance(v, dict) or v.keys() <= rule.get("properties", {}).keys()
    ),
    "properties": lambda *_: True,
    "items": lambda *_: True,
    "anyOf": lambda v, w, _, at: any(not invalid(v, one, at) for one in w),
    "oneOf": lambda v, w, _, at: sum(not invalid(v, one, at) for one in w) == 1,
    "allOf": lambda v, w, _, at: all(not invalid(v, one, at) for one in w),
}


def test_there_are_the_three_specs_of_the_readme_and_more() -> None:
    assert {"quickstart", "batchtopk_vs_topk", "all_types"} <= {path.stem for path in SHIPPED}


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_spec_loads_and_every_point_at_the_ends_of_its_space_is_a_trial(path: Path) -> None:
    spec = load_spec(path)
    plan = make_plan(spec, 384)
    assert plan.n_trials > 0
    for stratum in plan.strata:
        for end in (0, -1):
            params = {name: options(name, value)[end] for name, value in stratum.space.items()}
            trial = plan.trial(stratum, params, spec.seeds[0], 0)
            assert TrialConfig.model_validate_json(trial.model_dump_json()) == trial
            assert trial.train.samples == plan.marks()[-1]


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_spec_agrees_with_the_schema(path: Path) -> None:
    assert invalid(yaml.safe_load(path.read_text(encoding="utf-8")), SCHEMA) == []


@pytest.mark.parametrize("path", [p for p in SPECS if p.parent.name in ("sweeps", "spec")], ids=lambda path: path.stem)
def test_nothing_is_odd_about_the_plan_of_a_shipped_spec(path: Path) -> None:
    assert advice(make_plan(load_spec(path), 384)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_files_that_a_shipped_spec_names_are_shipped_too(path: Path) -> None:
    files = load_spec(path).data.dataset.data_files if path in SPECS else None
    for name in [files] if isinstance(files, str) else files or []:
        assert Path(name).is_file()


def test_all_types_has_every_type_at_the_same_sparsity() -> None:
    spec = load_spec(REPOSITORY / "sweeps" / "all_types.yaml")
    assert [arm.type for arm in spec.sae] == list(SAE_CONFIGS)
    assert {arm.params[arm.sparsity or ""] for arm in spec.sae if arm.type != "hierarchical_topk"} == {(16, 32)}


def test_the_quickstart_is_what_the_readme_promises() -> None:
    spec = load_spec(REPOSITORY / "sweeps" / "quickstart.yaml")
    assert [(arm.type, arm.params["k"]) for arm in spec.sae] == [("topk", (16, 32)), ("batchtopk", (16, 32))]
    assert len(spec.seeds) == 2
    assert "lr_factor" in make_plan(spec, 384).strata[0].space


# --- the schema itself -----------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "name": "x",
    "data": {"model": "a/b", "dataset": {"path": "c/d"}, "num_examples": "1_000", "cache": "off"},
    "sae": [{"type": "topk", "k": [1, "1e1"], "dict_size": 64}],
    "train": {"samples": 1000, "lr": {"low": "1e-4", "high": 0.1, "log": "on"}},
}


def changed(section: str, **values: Any) -> dict[str, Any]:
    old = GOOD.get(section, {})
    return {**GOOD, section: [{**old[0], **values}] if isinstance(old, list) else {**old, **values}}


def test_the_schema_knows_numbers_and_switches_as_yaml_1_2_reads_them() -> None:
    assert invalid(GOOD, SCHEMA) == []


@pytest.mark.parametrize(
    "value",
    [
        {},
        {**GOOD, "nmae": 1},
        {**GOOD, "name": "../x"},
        {**GOOD, "seeds": []},
        {**GOOD, "seeds": [0, 0]},
        changed("sae", k=0),
        changed("sae", k=None),
        changed("sae", k=[]),
        changed("sae", kk=1),
        changed("sae", l1_coeff=1),
        changed("sae", type="topkk"),
        changed("sae", expansion_factor=2),
        changed("sae", k={"low": 1}),
        changed("sae", k={"low": 1, "high": 2, "lgo": True}),
        changed("train", samples=[1, 2]),
        changed("train", samples={"low": 1, "high": 2}),
        changed("train", lr="fast"),
        changed("train", precision={"low": 1, "high": 2}),
        changed("data", cache="maybe"),
        changed("data", holdout=1),
        changed("search", sampler="grd"),
        changed("run", failures={"retries": {"crash": -1}}),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(value: dict[str, Any]) -> None:
    assert invalid(value, SCHEMA) != []


def test_everything_in_the_schema_is_described() -> None:
    for arm in SCHEMA["properties"]["sae"]["items"]["oneOf"]:
        assert all(field["description"] for field in arm["properties"].values()), arm["title"]
    for name, definition in SCHEMA["$defs"].items():
        assert all(field.get("description") for field in definition["properties"].values()), name
