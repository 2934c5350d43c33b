"""Reading a spec: the grammar, what words and numbers mean, and one exact line for everything that is wrong."""

# ruff: noqa: E501 - one case, one line: the tables below read as tables

from __future__ import annotations

import io
import json
import os
import re
import string
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from saebench.config import SAE_CONFIGS, TrainConfig
from saebench.errors import SpecError, UserError
from saebench.forecast import advice, work
from saebench.plan import make_plan
from saebench.spec import Arm, Range, SweepSpec, load_spec, options, parse_spec

TYPES = ", ".join(SAE_CONFIGS)
BASE = """\
name: base
data:
  model: nowhere/none
  dataset: {path: fancyzhx/ag_news}
  num_examples: 1000
sae:
  - {type: topk, k: [16, 32], dict_size: 512}
  - type: batchtopk
    k: 16
    dict_size: 512
train:
  samples: 10_000
  batch_size: 128
  lr: {low: 1e-4, high: 1e-2, log: true}
search: {sampler: random, points: 3}
"""

TYPES = ", ".join(SAE_CONFIGS)


def load(tmp_path: Path, text: str | bytes, *overrides: str) -> SweepSpec:
    path = tmp_path / "s.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_spec(path, overrides)


def errors(tmp_path: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The lines of the error, with the folder cut off."""
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "").split("\n")


def with_line(old: str, new: str) -> str:
    assert old in BASE
    return BASE.replace(old, new)


# --- what a spec says ------------------------------------------------------------------------------------------------


def test_scalars_lists_and_ranges_become_values_choices_and_ranges(tmp_path: Path) -> None:
    spec = load(tmp_path, BASE)
    assert spec.sae == (
        Arm(type="topk", params={"k": (16, 32), "dict_size": 512}),
        Arm(type="batchtopk", params={"k": 16.0, "dict_size": 512}),
    )
    assert spec.train == {"samples": 10_000, "batch_size": 128, "lr": Range(1e-4, 1e-2, log=True)}
    assert spec.search.sampler == "random"
    assert spec.prune.pruner == "median"  # a section that is not there has its defaults
    assert spec.seeds == (0,)


def test_a_spec_survives_json_and_its_own_plain_form(tmp_path: Path) -> None:
    text = BASE + "seeds: [3, 1]\nrun: {devices: [0, 1]}\neval: {metrics: []}\n"
    spec = load(tmp_path, text)
    assert SweepSpec.model_validate_json(spec.model_dump_json()) == spec
    assert parse_spec(json.loads(json.dumps(spec.plain()))) == spec


def test_a_mapping_is_read_as_a_file_is() -> None:
    values = {
        "name": "m",
        "data": {"model": "x/y", "dataset": {"path": "a/b"}, "num_examples": 5000},
        "sae": [{"type": "topk", "k": 8, "dict_size": 64}],
        "train": {"samples": 9000, "lr": {"low": 1e-3, "high": 1, "log": True}},
    }
    assert parse_spec(values).train["lr"] == Range(1e-3, 1.0, log=True)
    with pytest.raises(SpecError, match=r"^spec: train\.samples: -1: must be above 0$"):
        parse_spec({**values, "train": {"samples": -1}})
    with pytest.raises(SpecError, match=r'^spec: description: "\\u202e": character U\+202E is not allowed: remove it$'):
        parse_spec({**values, "description": "\u202e"})
    with pytest.raises(SpecError, match=r"^spec: train\.samples: a number of more than 100 digits$"):
        parse_spec({**values, "train": {"samples": 10**400}})
    with pytest.raises(
        SpecError,
        match=r"^here: train\.samples: <object .*>: must be a mapping, a list, text, a number, a bool or None",
    ):
        parse_spec({**values, "train": {"samples": object()}}, label="here")


def test_a_mapping_that_pyyaml_has_read_means_what_its_text_says() -> None:
    text = BASE.replace("samples: 10_000", "samples: 1e4").replace("lr: {low: 1e-4", "lr: {low: 1E-4")
    loaded = yaml.safe_load(text.replace("batch_size: 128", "batch_size: [128, 2e2]"))
    assert loaded["train"]["samples"] == "1e4"  # YAML 1.1 wants 1.0e+4
    train = parse_spec(loaded).train
    assert (train["samples"], train["batch_size"]) == (10_000, (128, 200))
    assert train["lr"] == Range(1e-4, 1e-2, log=True)


@pytest.mark.parametrize("value", ["", "~", "3e-4x", "nan", "on", "1:30", " 1", "0x10"])
def test_other_text_from_python_is_no_number(value: str) -> None:
    loaded = yaml.safe_load(BASE)
    loaded["train"]["lr"] = value
    with pytest.raises(SpecError, match="must be a number"):
        parse_spec(loaded)


def test_text_from_python_stays_text_where_text_is_meant() -> None:
    loaded = yaml.safe_load(BASE)
    loaded["data"] |= {"revision": "1e5", "prompt": "10"}
    data = parse_spec(loaded).data
    assert (data.revision, data.prompt) == ("1e5", "10")


@pytest.mark.parametrize(
    ("old", "new", "section", "key", "value"),
    [
        ("num_examples: 1000", "num_examples: 1e3", "data", "num_examples", 1000),
        ("num_examples: 1000", "num_examples: 1_000", "data", "num_examples", 1000),
        ("num_examples: 1000", "num_examples: 0o10", None, None, "must be a whole number"),
        ("num_examples: 1000", "num_examples: 01000", "data", "num_examples", 1000),  # not octal
        ("num_examples: 1000", "num_examples: 1000.0", "data", "num_examples", 1000),
        ("num_examples: 1000", "num_examples: 1000.5", None, None, "must be a whole number"),
        ("num_examples: 1000", 'num_examples: "1000"', None, None, "must be a whole number (it is in quotes"),
        ("num_examples: 1000", "num_examples: 16:40", None, None, "must be a whole number"),  # not sexagesimal
        ("num_examples: 1000", "num_examples: on", None, None, "must be a whole number"),
        ("num_examples: 1000", "num_examples: 1e400", None, None, "must be finite"),
        ("num_examples: 1000", "num_examples: .inf", None, None, "must be finite"),
        ("num_examples: 1000", "num_examples: 9007199254740993", None, None, "must be at most 9007199254740992"),
        ("num_examples: 1000", "num_examples: 1000\n  cache: off", "data", "cache", False),
        ("num_examples: 1000", "num_examples: 1000\n  cache: No", "data", "cache", False),
        ("num_examples: 1000", "num_examples: 1000\n  cache: TRUE", "data", "cache", True),
        ("num_examples: 1000", "num_examples: 1000\n  normalize: on", "data", "normalize", True),
        ("num_examples: 1000", "num_examples: 1000\n  cache: 0", None, None, "must be on or off"),
        ("num_examples: 1000", 'num_examples: 1000\n  cache: "off"', None, None, "must be on or off (it is in quotes"),
        ("num_examples: 1000", "num_examples: 1000\n  prompt: on", "data", "prompt", "on"),
        ("num_examples: 1000", "num_examples: 1000\n  prompt: null", "data", "prompt", None),
        ("num_examples: 1000", 'num_examples: 1000\n  prompt: "null"', "data", "prompt", "null"),
        ("num_examples: 1000", "num_examples: 1000\n  revision: 1e5", "data", "revision", "1e5"),  # a commit
        ("num_examples: 1000", "num_examples: 1000\n  revision: 0012345", "data", "revision", "0012345"),
        ("name: base", "name: 2024", None, "name", "2024"),
        ("name: base", "name: off", None, "name", "off"),
        ("name: base", "name: 2024-01-01", None, "name", "2024-01-01"),
    ],
)
def test_words_and_numbers_mean_what_a_person_expects(
    tmp_path: Path, old: str, new: str, section: str | None, key: str | None, value: object
) -> None:
    if key is None:
        assert any(str(value) in line for line in errors(tmp_path, with_line(old, new)))
        return
    spec = load(tmp_path, with_line(old, new))
    found = getattr(getattr(spec, section) if section else spec, key)
    assert found == value
    assert type(found) is type(value)


def test_an_integer_range_stays_one_and_a_float_range_too(tmp_path: Path) -> None:
    text = with_line("batch_size: 128", "batch_size: {low: 64, high: 1e2, step: 4}\n  beta1: {low: 0, high: 0.5}")
    spec = load(tmp_path, text)
    batch, beta = spec.train["batch_size"], spec.train["beta1"]
    assert isinstance(batch, Range)
    assert isinstance(beta, Range)
    assert batch == Range(64, 100, step=4)
    assert batch.integer
    assert not beta.integer


def test_groups_take_a_list_as_one_value_and_a_list_of_lists_as_choices(tmp_path: Path) -> None:
    arm = "  - {type: matryoshka, k: 16, dict_size: 512, groups: %s}\n"
    fixed = load(tmp_path, BASE.replace("train:", arm % "[0.5, 0.5]" + "train:"))
    assert fixed.sae[2].params["groups"] == (0.5, 0.5)
    text = BASE.replace("train:", arm % "[[0.5, 0.5], [0.25, 0.75]]" + "train:")
    assert errors(tmp_path, text) == [
        "s.yaml:11:55: sae[2].groups: groups can differ only between strata: add it to search.strata"
    ]
    listed = load(tmp_path, text.replace("points: 3", "points: 3, strata: [type, k, groups]"))
    assert [s.id for s in make_plan(listed).strata][-2:] == [
        "matryoshka-k16-groups_0.5_0.5",
        "matryoshka-k16-groups_0.25_0.75",
    ]
    text = BASE.replace("train:", arm % "[0.5, 0.25]" + "train:")
    assert errors(tmp_path, text) == [
        "s.yaml:11:55: sae[2].groups: [0.5, 0.25]: value error, the shares must add up to 1, not 0.75".replace(
            "value error, ", ""
        )
    ]


def test_a_section_whose_lines_are_commented_out_has_its_defaults(tmp_path: Path) -> None:
    assert load(tmp_path, BASE + "prune:\n  # pruner: asha\n") == load(tmp_path, BASE)


def test_anchors_and_merge_keys_share_what_arms_have_in_common(tmp_path: Path) -> None:
    arms = "  - &a {type: topk, k: [16, 32], dict_size: 512}\n  - {<<: *a, type: batchtopk, k: 8}\n"
    start, end = BASE.index("  - {type"), BASE.index("train:")
    spec = load(tmp_path, BASE[:start] + arms + BASE[end:])
    assert spec.sae[1] == Arm(type="batchtopk", params={"dict_size": 512, "k": 8.0})


def test_relative_files_are_meant_from_the_folder_of_the_spec(tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    text = with_line("{path: fancyzhx/ag_news}", "{path: json, data_files: [a.jsonl, /b.jsonl, 'https://c/d.jsonl']}")
    spec = load(tmp_path, text.replace("nowhere/none", "encoder"))
    assert spec.data.model == str(tmp_path / "encoder")
    assert spec.data.dataset.path == "json"
    assert spec.data.dataset.data_files == [str(tmp_path / "a.jsonl"), "/b.jsonl", "https://c/d.jsonl"]
    hub = load(tmp_path, with_line("{path: fancyzhx/ag_news}", "{path: fancyzhx/ag_news, data_files: x.parquet}"))
    assert hub.data.dataset.data_files == "x.parquet"  # a file of the repository on the hub
    (tmp_path / "corpus").mkdir()
    local = load(tmp_path, with_line("fancyzhx/ag_news", "corpus"))
    assert local.data.dataset.path == str(tmp_path / "corpus")


# --- overrides -------------------------------------------------------------------------------------------------------


def test_a_spec_may_come_from_a_pipe_and_its_files_are_then_those_of_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = with_line("{path: fancyzhx/ag_news}", "{path: json, data_files: mine.jsonl}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert load_spec("-").data.dataset.data_files == str(tmp_path / "mine.jsonl")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.replace("k: 16", "kk: 16").encode())))
    with pytest.raises(SpecError, match=r"^stdin:8:5: sae\[1\].k: is missing"):
        load_spec("-")
    reader, writer = os.pipe()
    os.write(writer, text.encode())
    os.close(writer)
    assert load_spec(f"/dev/fd/{reader}").data.dataset.data_files == str(tmp_path / "mine.jsonl")
    os.close(reader)


def test_a_misspelt_key_of_train_is_the_only_complaint_about_it(tmp_path: Path) -> None:
    """1000 texts do not fill a batch of the default size, which is not what the user asked for."""
    assert errors(tmp_path, with_line("batch_size: 128", "batchsize: 128")) == [
        's.yaml:13:3: train.batchsize: unknown key (did you mean "batch_size"?)'
    ]


def test_overrides_reach_into_lists_make_sections_and_win(tmp_path: Path) -> None:
    spec = load(
        tmp_path, BASE, "train.samples=1e5", "sae[1].k=[8,16]", "prune.pruner=asha", "train.lr.high=1", "name=x"
    )
    assert spec.train["samples"] == 100_000
    assert spec.sae[1].params["k"] == (8.0, 16.0)
    assert spec.prune.pruner == "asha"
    assert spec.train["lr"] == Range(1e-4, 1.0, log=True)
    assert spec.name == "x"


def test_an_override_of_an_aliased_arm_leaves_the_other_alone(tmp_path: Path) -> None:
    text = BASE.replace("lr: {low: 1e-4, high: 1e-2, log: true}", "lr: 1e-3") + "prune: &p {startup_trials: 3}\n"
    arms = "  - &a {type: topk, k: 16, dict_size: 512}\n  - {<<: *a, type: batchtopk}\n"
    start, end = text.index("  - {type"), text.index("train:")
    spec = load(tmp_path, text[:start] + arms + text[end:], "sae[0].k=4")
    assert [arm.params["k"] for arm in spec.sae] == [4, 16.0]


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("train.samples", "--set train.samples: write KEY=VALUE, such as train.samples=1e5"),
        ("train.samples=many", '--set train.samples=many: train.samples: "many": must be a whole number'),
        ("train.sampels=1", '--set train.sampels=1: train.sampels: unknown key (did you mean "samples"?)'),
        ("sae[7].k=3", "--set sae[7].k=3: sae[7]: there are only 2 entries"),
        ("sae.k=3", '--set sae.k=3: sae: [{type, k, dict_size}, {type, k, dict_size}]: has no key "k"'),
        ("train[0]=3", "--set train[0]=3: train: {samples, batch_size, lr}: is not a list"),
        ("name.x=3", '--set name.x=3: name: "base": has no key "x"'),
        (".x=3", "--set .x=3: '.x' is not a key such as train.lr or sae[1].k"),
        ("=3", "--set =3: '' is not a key such as train.lr or sae[1].k"),
        ("sae[1]k=3", "--set sae[1]k=3: 'sae[1]k' is not a key such as train.lr or sae[1].k"),
        ("sae[1].k=600", "--set sae[1].k=600: sae[1].k: 600: must be below dict_size, but 600 >= 512"),
        ("train.lr={low: 2, low: 3}", "--set train.lr={low: 2, low: 3}:1:10: low: given twice (first on line 1)"),
        ("train.lr=[1", "--set train.lr=[1:1:3: not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)"),
        ("train.lr=!!python/name:os.system", "--set train.lr=!!python/name:os.system:1:1: tag tag:yaml.org,2002:python/name:os.system: tags are not allowed in a spec"),
    ],
)  # fmt: skip
def test_errors_name_the_override(tmp_path: Path, setting: str, line: str) -> None:
    assert errors(tmp_path, BASE, setting) == [line]


# --- what is wrong: one line each, with its place ---------------------------------------------------------------------

WRONG: list[tuple[str, str, str]] = [
    # formats of files
    ("{path: fancyzhx/ag_news}", "{path: jsonl, data_files: x.jsonl}", 's.yaml:4:19: data.dataset.path: "jsonl": is not a file format (use "json", which reads JSON lines too)'),
    ("{path: fancyzhx/ag_news}", "{path: parqet, data_files: [x]}", 's.yaml:4:19: data.dataset.path: "parqet": is not a file format (did you mean "parquet"?)'),
    # unknown, missing and misplaced keys
    ("name: base", "nmae: base", 's.yaml:1:1: name: is missing|s.yaml:1:1: nmae: unknown key (did you mean "name"?)'),
    ("name: base\n", "", "s.yaml:1:1: name: is missing"),
    ("  samples: 10_000\n", "", "s.yaml:12:3: train.samples: is missing"),
    ("{path: fancyzhx/ag_news}", "{name: x}", "s.yaml:4:12: data.dataset.path: is missing"),
    ("    k: 16\n", "    kk: 16\n", 's.yaml:8:5: sae[1].k: is missing|s.yaml:9:5: sae[1].kk: unknown key (did you mean "k"?)'),
    ("    k: 16\n", "    k: 16\n    lr: 1e-3\n", "s.yaml:10:5: sae[1].lr: unknown key (did you mean train.lr?)"),
    ("    k: 16\n", "    k: 16\n    bandwidth: 1\n", "s.yaml:10:5: sae[1].bandwidth: unknown key (batchtopk has no bandwidth; jumprelu has)"),
    ("samples: 10_000", "samples: 10_000\n  k: 3", "s.yaml:13:3: train.k: unknown key (k belongs to an arm, under sae)"),
    ("name: base", "name: base\nlr: 3", "s.yaml:2:1: lr: unknown key (did you mean train.lr?)"),
    ("points: 3}", "points: 3}\nprune: {warm_up: 3}", 's.yaml:16:9: prune.warm_up: unknown key (did you mean "warmup"?)'),
    ("name: base", "name: base\nname: twice", "s.yaml:2:1: name: given twice (first on line 1)"),
    ("batch_size: 128", "batch_size: 128\n  samples: 5", "s.yaml:14:3: train.samples: given twice (first on line 12)"),
    # types and constraints
    ("samples: 10_000", "samples: lots", 's.yaml:12:12: train.samples: "lots": must be a whole number'),
    ("samples: 10_000", "samples: 0", "s.yaml:12:12: train.samples: 0: must be above 0"),
    ("samples: 10_000", "samples: null", "s.yaml:12:12: train.samples: null: must be a whole number"),
    ("samples: 10_000", "samples: {a: 1}", "s.yaml:12:12: train.samples: {a}: must be one value: trials are compared at the same of it"),
    ("samples: 10_000", "samples: [10000, 20000]", "s.yaml:12:12: train.samples: [10000, 20000]: must be one value: trials are compared at the same of it"),
    ("batch_size: 128", "batch_size: 128\n  beta1: 1", "s.yaml:14:10: train.beta1: 1: must be below 1"),
    ("batch_size: 128", "warmup: 1.5\n  batch_size: 128", "s.yaml:13:11: train.warmup: 1.5: must be at most 1"),
    ("batch_size: 128", "decay: -.1\n  batch_size: 128", "s.yaml:13:10: train.decay: -.1: must be at least 0"),
    ("num_examples: 1000", "num_examples: [1]", "s.yaml:5:17: data.num_examples: [1]: must be a whole number"),
    ("model: nowhere/none", "model: {a: 1}", "s.yaml:3:10: data.model: {a}: must be text"),
    ("model: nowhere/none", "model: nowhere/none\n  dtype: float23", 's.yaml:4:10: data.dtype: "float23": must be one of "float32", "float16" (did you mean "float32"?)'),
    ("{path: fancyzhx/ag_news}", "fancyzhx/ag_news", 's.yaml:4:12: data.dataset: "fancyzhx/ag_news": must be a mapping (key: value)'),
    ("{sampler: random", "{sampler: Grid", 's.yaml:15:19: search.sampler: "Grid": must be one of "grid", "random", "qmc", "tpe", "cmaes" (did you mean "grid"?)'),
    ("points: 3}", "points: 3}\nseeds: 3", "s.yaml:16:8: seeds: 3: must be a list such as [0, 1, 2]"),
    ("points: 3}", "points: 3}\nseeds: [1, x]", 's.yaml:16:12: seeds[1]: "x": must be a whole number'),
    ("points: 3}", "points: 3}\nrun: {devices: gpu}", 's.yaml:16:16: run.devices: "gpu": must be one of "auto", "cpu", "mps" or a list (did you mean "cpu"?)'),
    ("points: 3}", "points: 3}\nrun: {failures: {retries: {crash: -1}}}", "s.yaml:16:35: run.failures.retries.crash: -1: must be at least 0"),
    ("points: 3}", "points: 3}\neval: {metrics: [knn]}", 's.yaml:16:18: eval.metrics[0]: "knn": must be one of "knn_overlap_at_10", "similarity_rank_correlation", "probing", "code_stability_duplicates", "coherence", "example_auroc", "label_match"'),
    # arms
    ("type: batchtopk", "type: batchtop", f's.yaml:8:11: sae[1].type: "batchtop": must be one of {TYPES} (did you mean "batchtopk"?)'),
    ("- type: batchtopk\n    k: 16", "- k: 16", f"s.yaml:8:5: sae[1].type: is missing: one of {TYPES}"),
    ("    dict_size: 512\n", "", "s.yaml:8:5: sae[1]: give dict_size or expansion_factor, one of the two"),
    ("    dict_size: 512\n", "    dict_size: 512\n    expansion_factor: 4\n", "s.yaml:8:5: sae[1]: give dict_size or expansion_factor, one of the two"),
    ("type: batchtopk\n    k: 16", "type: vanilla", "s.yaml:8:5: sae[1]: give l1_coeff or target_l0, one of the two"),
    ("type: batchtopk\n    k: 16", "type: jumprelu\n    l0_coeff: 1\n    target_l0: 8", "s.yaml:8:5: sae[1]: give l0_coeff or target_l0, one of the two"),
    ("    k: 16\n", "    k: 16\n    control: frozen\n", 's.yaml:10:14: sae[1].control: "frozen": must be one of "frozen_decoder", "frozen_encoder", "soft_decoder" or null (did you mean "frozen_encoder"?)'),
    ("    k: 16\n", "    k: 16\n    control: [null, soft_decoder]\n", "s.yaml:10:15: sae[1].control[0]: null: null cannot be a stratum level; split this arm in two"),
    ("type: batchtopk\n    k: 16", "type: vanilla\n    target_l0: [8, null]", "s.yaml:9:20: sae[1].target_l0[1]: null: null cannot be a stratum level; split this arm in two"),
    ("k: [16, 32]", "k: [16, 512]", "s.yaml:7:26: sae[0].k[1]: 512: must be below dict_size, but 512 >= 512"),
    ("    k: 16\n", "    k: 513\n", "s.yaml:9:8: sae[1].k: 513: must be below dict_size, but 513 >= 512"),
    ("type: batchtopk\n    k: 16\n    dict_size: 512", "type: matryoshka\n    k: 2\n    dict_size: [512, 8]", "s.yaml:10:22: sae[1].dict_size[1]: 8: too few latents for groups [0.0625, 0.0625, 0.125, 0.25, 0.5]: one level gets none"),
    ("k: [16, 32]", "k: []", "s.yaml:7:21: sae[0].k: []: a list of choices needs at least one"),
    ("k: [16, 32]", "k: [16, 1e1, 16]", "s.yaml:7:31: sae[0].k[2]: 16: is in the list twice"),
    ("k: [16, 32]", "k: {low: 1, high: 9}", "s.yaml:7:21: sae[0].k: k is a stratum axis, so it takes a value or a list; to search it, leave it out of search.strata"),
    ("type: batchtopk", "type: topk", "s.yaml:8:5: sae[1]: gives the stratum topk-k16-n512, as sae[0] does: write them as one arm, with lists"),
    ("type: batchtopk", "type: topk\n    aux_coeff: 0", "s.yaml:8:5: sae[1]: gives the stratum topk-k16-n512, as sae[0] does: add aux_coeff, in which they differ, to search.strata"),
    # ranges
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 2, high: 1}", "s.yaml:14:7: train.lr: {low, high}: low must be below high, but 2 >= 1"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 2}", "s.yaml:14:7: train.lr.high: is missing: a range has low and high"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 0, high: 1, log: yes}", "s.yaml:14:13: train.lr.low: 0: must be above 0"),
    ("{low: 1e-4, high: 1e-2, log: true}", "1e-3\n  beta1: {low: 0, high: 0.5, log: yes}", "s.yaml:15:10: train.beta1: {low, high, log}: a log range needs low above 0, not 0"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1, high: 2, log: maybe}", 's.yaml:14:30: train.lr.log: "maybe": must be on or off'),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1, high: 2, lgo: on}", 's.yaml:14:25: train.lr.lgo: unknown key (did you mean "low"?)'),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1, high: 2, log: on, step: 1}", "s.yaml:14:7: train.lr: {low, high, log, step}: a range has log or step, not both"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1, high: 2, step: 0}", "s.yaml:14:7: train.lr: {low, high, step}: step must be above 0 and at most high - low, not 0"),
    ("{low: 1e-4, high: 1e-2, log: true}", "{low: 1, high: 2, step: 0.3}", "s.yaml:14:7: train.lr: {low, high, step}: high - low must be a multiple of step, but 1 is 3.33333 steps of 0.3"),
    ("batch_size: 128", "batch_size: {low: 1.5, high: 8}", "s.yaml:13:21: train.batch_size.low: 1.5: must be a whole number"),
    ("batch_size: 128", "precision: {low: 1, high: 8}\n  batch_size: 128", 's.yaml:13:14: train.precision: {low, high}: must be one of "float32", "bfloat16": only numbers have ranges'),
    # samplers and strata
    ("{sampler: random, points: 3}", "{sampler: grid}", "s.yaml:14:7: train.lr: grid crosses lists, and a range is not a list: give a list, or set search.sampler to qmc or tpe"),
    ("{low: 1e-4, high: 1e-2, log: true}\nsearch: {sampler: random", "1e-3\nsearch: {sampler: grid", "s.yaml:15:33: search.points: 3: grid has as many points as its lists give: leave points out"),
    ("{low: 1e-4, high: 1e-2, log: true}\nsearch: {sampler: random, points: 3}", "[1e-3, 1e-2]\nsearch: {sampler: grid, enqueue: [{lr: 1e-3}]}", "s.yaml:15:34: search.enqueue: grid tries every point anyway: leave enqueue out"),
    ("batch_size: 128\n  lr: {low: 1e-4, high: 1e-2, log: true}\nsearch: {sampler: random", "batch_size: [128, 256]\nsearch: {sampler: cmaes", "s.yaml:13:15: train.batch_size: [128, 256]: cmaes searches ranges only, a list has no covariance: fix it, add it to search.strata or use tpe"),
    ("points: 3}", "points: 3, strata: [type, kk]}", 's.yaml:15:53: search.strata[1]: "kk": no arm has this parameter (did you mean "k"?)'),
    ("points: 3}", "points: 3, strata: [k]}", 's.yaml:15:46: search.strata: ["k"]: must name "type": arms of different types have different parameters'),
    ("points: 3}", "points: 3, strata: [type, samples]}", 's.yaml:15:53: search.strata[1]: "samples": is the same for every trial'),
    ("points: 3}", "points: 3, strata: [type, type]}", 's.yaml:15:53: search.strata[1]: "type": is in the list twice'),
    ("points: 3}", "points: 3, strata: [type, k, lr]}", "s.yaml:14:7: train.lr: lr is a stratum axis, so it takes a value or a list"),
    # enqueue
    ("points: 3}", "points: 3, enqueue: [{lrr: 1}]}", 's.yaml:15:49: search.enqueue[0].lrr: unknown key (did you mean "lr"?)'),
    ("points: 3}", "points: 3, enqueue: [{lr: -1}]}", "s.yaml:15:53: search.enqueue[0].lr: -1: must be above 0"),
    ("points: 3}", "points: 3, enqueue: [{bandwidth: 1}]}", "s.yaml:15:49: search.enqueue[0].bandwidth: unknown key"),
    ("points: 3}", "points: 3, enqueue: [{lr: 1e-3}, {lr: 0.5}]}", "s.yaml:15:60: search.enqueue[1].lr: matches no stratum (lr 0.5 is outside 0.0001..0.01)"),
    ("points: 3}", "points: 3, enqueue: [{k: 99}]}", "s.yaml:15:48: search.enqueue[0].k: matches no stratum (topk: k 99 must be one of 16, 32; batchtopk: k is 16, not 99)"),
    ("points: 3}", "points: 3, enqueue: [{warmup: 0.3}]}", "s.yaml:15:48: search.enqueue[0].warmup: matches no stratum (warmup is 0.1, not 0.3)"),
    ("points: 3}", "points: 1, enqueue: [{lr: 1e-3}, {lr: 2e-3}]}", "s.yaml:15:47: search.enqueue: has 2 points for topk-k16-n512, where search.points is 1: raise it"),
    ("points: 3}", "points: 3, enqueue: {lr: 1}}", "s.yaml:15:47: search.enqueue: {lr}: must be a list of points, such as [{lr: 1e-3}]"),
    # objective
    ("points: 3}", "points: 3, objective: eval/fuv}", 's.yaml:15:49: search.objective: "eval/fuv": is not a metric (did you mean "eval/fvu"?)'),
    ("points: 3}", "points: 3, objective: eval/explained_variance}", 's.yaml:15:49: search.objective: "eval/explained_variance": is better when it is larger: set search.direction to maximize'),
    ("points: 3}", "points: 3, objective: eval/probing_auc_k5, direction: maximize}\nprune: {pruner: none}", 's.yaml:15:49: search.objective: "eval/probing_auc_k5": is not measured in this sweep: add probing to eval.metrics'),
    ("points: 3}", "points: 3, objective: eval/knn_overlap_at_10, direction: maximize}", 's.yaml:15:49: search.objective: "eval/knn_overlap_at_10": is measured only at the end of a trial: set prune.pruner to none'),
    # sizes that do not fit each other
    ("samples: 10_000", "samples: 100", "s.yaml:12:12: train.samples: 100: must be at least one batch, which is 128"),
    ("samples: 10_000", "samples: 10_000\n  eval_every: 10_001", "s.yaml:13:15: train.eval_every: 10_001: must be at most train.samples, which is 10000"),
    ("samples: 10_000", "samples: 10_000\n  eval_every: 100", "s.yaml:13:15: train.eval_every: 100: must be at least one batch, which is 128"),
    ("samples: 10_000", "samples: 1e9\n  eval_every: 128", "s.yaml:13:15: train.eval_every: 128: makes 7,812,500 evaluations per trial; at most 10,000"),
    ("samples: 10_000", "samples: 10_000\n  warmup: 0.9", "s.yaml:13:11: train.warmup: 0.9: warmup and decay can reach 0.9 + 0.5 of the run, which is more than all of it"),
    ("num_examples: 1000", "num_examples: 100", "s.yaml:5:17: data.num_examples: 100: about 90 texts to train on are less than one batch of 128"),
    ("num_examples: 1000", "num_examples: 1000\n  holdout: 0.0001", "s.yaml:5:17: data.num_examples: 1000: the validation part, 3.33e-05 of 1000 texts, is less than one text"),
    ("num_examples: 1000", "num_examples: 1000\n  holdout: 0", "s.yaml:6:12: data.holdout: 0: must be above 0"),
    ("points: 3}", "points: 3}\nprune: {warmup: 10000}", "s.yaml:16:17: prune.warmup: 10000: must be below train.samples, which is 10000: nothing could be stopped early"),
    ("points: 3}", "points: 3}\nprune: {pruner: threshold}", 's.yaml:16:17: prune.pruner: "threshold": needs prune.lower or prune.upper'),
    ("points: 3}", "points: 3}\nprune: {pruner: threshold, lower: 2, upper: 1}", "s.yaml:16:35: prune.lower: 2: must be below prune.upper, which is 1"),
    ("points: 3}", "points: 3}\nprune: {upper: .nan}", "s.yaml:16:16: prune.upper: .nan: must be finite"),
    ("points: 3}", "points: 3}\nbudget: {samples: 9999}", "s.yaml:16:19: budget.samples: 9999: is less than one trial takes (train.samples: 10000)"),
    ("points: 3}", "points: 3}\neval: {metrics: [probing]}", 's.yaml:16:18: eval.metrics[0]: "probing": needs the classes: set data.dataset.label_column'),
    # seeds, names, devices, counts
    ("points: 3}", "points: 3}\nseeds: []", "s.yaml:16:8: seeds: []: needs at least one seed"),
    ("points: 3}", "points: 3}\nseeds: [1, 2, 1]", "s.yaml:16:15: seeds[2]: 1: is in the list twice"),
    ("points: 3}", "points: 3}\nseeds: [-1]", "s.yaml:16:9: seeds[0]: -1: must be between 0 and 4294967295"),
    ("points: 3}", "points: 3}\nrun: {devices: [0, 0]}", "s.yaml:16:20: run.devices[1]: 0: is in the list twice"),
    ("points: 3}", "points: 3}\nrun: {devices: []}", "s.yaml:16:16: run.devices: []: needs at least one device; for the CPU write cpu"),
    ("name: base", "name: ../evil", 's.yaml:1:7: name: "../evil": must be letters, digits, dots, dashes and underscores, at most 100, a letter or digit first'),
    ("name: base", "name: a b", 's.yaml:1:7: name: "a b": must be letters, digits, dots, dashes and underscores, at most 100, a letter or digit first'),
    ("points: 3}", "points: 50_000}", "s.yaml:7:3: sae: strata x points x seeds are 150,000 trials; at most 100,000"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "lines"), WRONG)
def test_what_is_wrong_gets_its_line(tmp_path: Path, old: str, new: str, lines: str) -> None:
    assert errors(tmp_path, with_line(old, new)) == lines.split("|")


def test_all_problems_of_a_file_are_reported_at_once_in_its_order(tmp_path: Path) -> None:
    text = """\
name: a/b
data:
  model: nowhere/none
  num_examples: few
sae:
  - {type: topk, k: 600, dict_size: 512}
  - {type: jumprelo, target_l0: 3, dict_size: 512}
train: {samples: 1e4, batch_size: 1e5, lr: {low: 2, high: 1}}
seeds: [1, 1]
sead: 4
"""
    assert errors(tmp_path, text) == [
        's.yaml:1:7: name: "a/b": must be letters, digits, dots, dashes and underscores, at most 100, a letter or digit first',
        "s.yaml:3:3: data.dataset: is missing",
        's.yaml:4:17: data.num_examples: "few": must be a whole number',
        "s.yaml:6:21: sae[0].k: 600: must be below dict_size, but 600 >= 512",
        f's.yaml:7:12: sae[1].type: "jumprelo": must be one of {TYPES} (did you mean "jumprelu"?)',
        "s.yaml:8:18: train.samples: 1e4: must be at least one batch, which is 100000",
        "s.yaml:8:44: train.lr: {low, high}: low must be below high, but 2 >= 1",
        "s.yaml:9:12: seeds[1]: 1: is in the list twice",
        's.yaml:10:1: sead: unknown key (did you mean "seeds"?)',
    ]


def test_the_width_of_a_known_encoder_is_part_of_the_check(tmp_path: Path, minilm_path: str) -> None:
    """64 >= round(0.1 * 384) = 38."""
    text = BASE.replace("nowhere/none", minilm_path).replace(
        "k: [16, 32], dict_size: 512", "k: 64, expansion_factor: 0.1"
    )
    assert errors(tmp_path, text) == [
        "s.yaml:7:21: sae[0].k: 64: must be below dict_size, but 64 >= 38 (expansion_factor x embeddings of width 384)"
    ]


def test_at_most_fifty_problems_are_listed(tmp_path: Path) -> None:
    lines = errors(tmp_path, BASE + "".join(f"wrong_{i}: 1\n" for i in range(80)))
    assert len(lines) == 51
    assert lines[-1] == "... and 30 more problems"


# --- what is no spec at all ------------------------------------------------------------------------------------------

UNREADABLE: list[tuple[bytes, str]] = [
    (b"", "s.yaml: the file is empty: a spec needs at least name, data, sae and train"),
    (b"\n# nothing\n---\n", "s.yaml: the file is empty: a spec needs at least name, data, sae and train"),
    (b"[1, 2]", "s.yaml:1:1: a spec is a mapping (key: value), not [1, 2]"),
    (b"name: x\ndata:\n\tmodel: y\n", "s.yaml:3:1: not YAML: a tab cannot indent or separate, use spaces (while scanning for the next token)"),
    (b"name: caf\xe9\n", "s.yaml:1:10: byte 0xe9 is not UTF-8"),
    ("name: x".encode("utf-16"), "s.yaml:1:1: byte 0xff is not UTF-8"),
    (b"name: x\nseeds: [1\ntrain: 2]: 3", "s.yaml:3:6: not YAML: expected ',' or ']', but got ':' (while parsing a flow sequence)"),
    (b"a: b: c", "s.yaml:1:5: not YAML: mapping values are not allowed here"),
    (b"name: a\0b", "s.yaml:1:8: character U+0000 is not allowed in YAML"),
    (b'name: "\\ud800"', "s.yaml:1:7: character U+D800 is not allowed: remove it"),
    (b'description: "\\x9b31m"', "s.yaml:1:14: character U+009B is not allowed: remove it"),
    (b'description: "\\e]0;x"', "s.yaml:1:14: character U+001B is not allowed: remove it"),
    ("description: a\u202eb".encode(), "s.yaml:1:14: character U+202E is not allowed: remove it"),
    (b'{"a\\u2067b": 1}', "s.yaml:1:2: character U+2067 is not allowed: remove it"),
    (b'name: "\\UFFFFFFFF"', "s.yaml:1:8: not YAML: an escape that names no character"),
    (b"name: x\n---\nname: y\n", "s.yaml:2:1: a second document: a spec is a single one; remove what follows"),
    (b"a: *b", "s.yaml:1:4: a: *b: no anchor of that name is complete above it"),
    (b"a: &a [*a]", "s.yaml:1:8: a[0]: *a: no anchor of that name is complete above it"),
    (b"a: !!python/object/apply:os.system [touch pwned]", "s.yaml:1:4: a: tag tag:yaml.org,2002:python/object/apply:os.system: tags are not allowed in a spec"),
    (b"a: !env HOME", "s.yaml:1:4: a: tag !env: tags are not allowed in a spec"),
    (b"a: " + b"[" * 30_000, "s.yaml:1:27: nested more than 24 deep"),
    (b"{a: " * 5_000, "s.yaml:1:94: nested more than 24 deep"),
    (b"a: 1\n" * 2_000_000, "s.yaml: too large: a spec has at most 64 KiB"),
    (b"x: [" + b"1," * 11_000 + b"]", "s.yaml:1:19999: more than 10,000 values (aliases counted as often as they are used)"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "line"), UNREADABLE, ids=lambda value: repr(value)[:20])
def test_what_is_no_spec_gets_one_clean_line_quickly(tmp_path: Path, content: bytes, line: str) -> None:
    start = time.thread_time()
    assert errors(tmp_path, content) == [line]
    assert time.thread_time() - start < 5


def test_a_pruner_that_is_off_has_no_warm_up_to_check(tmp_path: Path) -> None:
    """So that a short trial run of a long spec needs no more than a few overrides."""
    text = BASE + "prune: {warmup: 9_000}\n"
    assert errors(tmp_path, text, "train.samples=1000") == [
        "s.yaml:16:17: prune.warmup: 9_000: must be below train.samples, which is 1000: nothing could be stopped early"
    ]
    load(tmp_path, text, "train.samples=1000", "prune.pruner=none")


def test_cmaes_takes_ranges_inside_strata_and_lists_as_their_axes(tmp_path: Path) -> None:
    assert load(tmp_path, BASE, "search.sampler=cmaes").sae[0].params["k"] == (16, 32)


def test_an_alias_bomb_is_defused_before_it_grows(tmp_path: Path) -> None:
    """9^9 values in 300 bytes."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
    (line,) = errors(tmp_path, bomb)
    assert line.endswith("more than 10,000 values (aliases counted as often as they are used)")


def test_a_chain_of_aliases_cannot_hide_depth(tmp_path: Path) -> None:
    chain = "a: &a [[[[[[[[[[1]]]]]]]]]]\nb: &b [[[[[[[[[[*a]]]]]]]]]]\nc: &c [[[[[[[[[[*b]]]]]]]]]]\n"
    assert errors(tmp_path, chain) == ["s.yaml:3:17: nested more than 24 deep"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: No such file or directory$"):
        load_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match=r": Is a directory$"):
        load_spec(tmp_path)
    with pytest.raises(SpecError, match="null byte"):
        load_spec("a\0b")


def test_fields_of_arms_and_of_train_have_different_names() -> None:
    """Strata hold both in one namespace."""
    for config in SAE_CONFIGS.values():
        assert not config.model_fields.keys() & TrainConfig.model_fields.keys()


def test_numpys_numbers_ranges_and_paths_are_what_they_mean(tmp_path: Path) -> None:
    """As they come out of a report's frame."""
    np = pytest.importorskip("numpy")
    arm = {"type": "topk", "k": np.array([8, 16]), "dict_size": np.int64(64)}
    data = {"model": "m", "dataset": {"path": "json", "data_files": tmp_path / "a.json"}, "num_examples": np.int32(800)}
    (tmp_path / "a.json").write_text('{"text": "a"}')
    train = {"samples": 2000, "batch_size": 64, "lr": np.float64(1e-3), "deterministic": np.bool_(True)}
    found = parse_spec({"name": "s", "data": data, "sae": [arm], "train": train, "seeds": range(3)})
    assert found.sae[0].params == {"k": (8, 16), "dict_size": 64}
    assert (found.train["lr"], found.train["deterministic"], found.seeds) == (1e-3, True, (0, 1, 2))
    assert found.data.dataset.data_files == str(tmp_path / "a.json")
    with pytest.raises(SpecError, match=r"sae\[0\]\.k\[1\]: .*must be a mapping, a list, text"):
        parse_spec({"name": "s", "sae": [{"type": "topk", "k": [8, object()]}]})


# --- the fuzz --------------------------------------------------------------------------------------------------------

NASTY = [
    "", "~", "on", "-1", "0", "1e309", "1e-3", "9" * 400, "1_0", ".nan", "-.inf", "[]", "{}", "[1, 2]", "{low: 1, high: 2}",
    "{low: 2, high: 1, log: on}", "[[1]]", "[{a: 1}]", "{low: 0, high: 1, step: 1e-300}", "!!python/object:os.system {}",
    "!!python/object/apply:os.system [touch pwned]", "!!binary aGk=", "*a", "&a x", "&a [*a]", "<<: *a", '"\\0"', '"\\ud800"',
    "'", '"', "|", ">-", "? ", ": ", "- ", "\t", "\r\n", "%YAML 1.1", "---\n", "...\n", "#", "}", "]", "{", "[", ",", "\u2028",
    "\ufeff", "\x00", "\x1b", "é", "😀", "k", "type", "topk", "grid", "cmaes", "asha", "threshold", "null", "[" * 40, "- " * 40,
    "{a: " * 40, "a" * 3000, "[1e3, 1000]", "[null, 1]", "dict_size: 3", "expansion_factor: 1e18", "strata: [type]", "points: 1e15",
    "eval_every: 1", "samples: 9007199254740992", "name: [x]", "1:30", "2024-01-01", "0x10", "0b1", "-0", "+5", "5.", ".5",
]  # fmt: skip
PLAUSIBLE = [
    "1", "2", "3", "8", "64", "100", "256", "1000", "5e3", "9_000", "0.1", "0.5", "1e-3", "[1, 2]", "[8, 16, 64]", "[0.1, 0.2]", "[100, 200]",
    "{low: 1, high: 8}", "{low: 1e-3, high: 0.5, log: on}", "{low: 64, high: 128, step: 32}", "topk", "vanilla", "batchtopk", "tpe", "grid",
    "random", "cmaes", "median", "none", "hyperband", "pareto", "beta1", "beta2", "warmup", "dead_after", "eval_every", "replicate: all, seeds",
]  # fmt: skip
FUZZ_BASE = """\
name: fuzz
data: {model: nowhere/none, dataset: {path: a/b}, num_examples: 1000}
sae:
- {type: topk, k: [16, 32], dict_size: 512}
- {type: vanilla, l1_coeff: 0.1, expansion_factor: 4}
train: {samples: 9000, batch_size: 128, lr: {low: 1e-4, high: 1e-2, log: true}}
seeds: [0, 1]
search: {sampler: qmc, points: 3, enqueue: [{lr: 1e-3}]}
prune: {pruner: asha}
"""
TOKENS = [(m.start(), m.end()) for m in re.finditer(r"[^\s{}\[\],:]+", FUZZ_BASE)]


def judge(folder: Path, content: bytes, overrides: tuple[str, ...] = ()) -> bool:
    """A valid spec that can be planned, or one clean message, without thinking for long."""
    path = folder / "f.yaml"
    path.write_bytes(content)
    start = time.thread_time()
    try:
        plan = make_plan(load_spec(path, overrides), 384)
        advice(plan)
        work(plan)
        for stratum in plan.strata[:3]:
            plan.enqueued(stratum)
            for end in (0, -1):  # the ends of every range and list are points that can be trained
                params = {name: options(name, value)[end] for name, value in stratum.space.items()}
                assert plan.trial(stratum, params, 0, 0).sae.dict_size
        valid = True
    except UserError as error:
        valid = False
        for line in str(error).split("\n"):
            assert line.startswith((str(path), "--set ", "... and ", f"{path.stem}: ", "fuzz: ")), line
            assert line.isprintable(), line
            assert ": " in line, line
            assert len(line) < 600, line
    assert time.thread_time() - start < 5
    return valid


@st.composite
def replaced_values(draw: st.DrawFn) -> bytes:
    """One to three words of a good spec replaced by something plausible or nasty, repeated or left out."""
    text = FUZZ_BASE
    for start, end in sorted(
        draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=3, unique=True)), reverse=True
    ):
        new = draw(
            st.sampled_from(PLAUSIBLE) | st.sampled_from(NASTY) | st.just(f"{text[start:end]}, {text[start:end]}")
        )
        text = text[:start] + new + text[end:]
    return text.encode("utf-8", "surrogatepass")


@st.composite
def broken_bytes(draw: st.DrawFn) -> bytes:
    """A good spec with bytes put in, cut out or moved."""
    data = FUZZ_BASE.encode()
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 40)))
        piece = draw(
            st.binary(max_size=6) | st.sampled_from([n.encode() for n in NASTY]) | st.just(data[start:end] * 2)
        )
        data = data[:start] + piece + data[end:]
    return data


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([*SAE_CONFIGS, "k"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "high", "type", "k", "x"]), inner)
    ),
    max_leaves=5,
)
KEYS = ["name", "data.model", "data.dataset", "data.num_examples", "sae", "sae[0].k", "sae[1]", "sae[1].l1_coeff", "train.lr",
        "train.samples", "train.batch_size", "train.eval_every", "seeds", "search.points", "search.sampler", "search.strata",
        "search.enqueue", "prune.pruner", "prune.warmup", "run.devices", "eval.metrics", "budget", "train.dead_after"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


fuzz = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


def test_the_fuzz_starts_from_a_valid_spec(folder: Path) -> None:
    assert judge(folder, FUZZ_BASE.encode())
    assert len(TOKENS) > 40


@pytest.mark.slow
@settings(fuzz, max_examples=2500)
@given(content=replaced_values())
def test_fuzz_values(folder: Path, content: bytes) -> None:
    event("valid" if judge(folder, content) else "refused")
    assert not (Path.cwd() / "pwned").exists()


@pytest.mark.slow
@settings(fuzz, max_examples=1500)
@given(content=broken_bytes())
def test_fuzz_bytes(folder: Path, content: bytes) -> None:
    event("valid" if judge(folder, content) else "refused")


@settings(fuzz, max_examples=600)
@given(key=st.sampled_from(KEYS), value=VALUES | st.sampled_from(PLAUSIBLE))
def test_fuzz_overrides(folder: Path, key: str, value: object) -> None:
    text = value if value in PLAUSIBLE else json.dumps(value)
    event("valid" if judge(folder, FUZZ_BASE.encode(), (f"{key}={text}",)) else "refused")


ALTERNATIVES = {
    "sae[0]": ["{type: batchtopk, k: 2.5, dict_size: [64, 128]}", "{type: gated, target_l0: [4, 9], expansion_factor: 0.5}",
               "{type: matryoshka, k: 8, expansion_factor: {low: 1, high: 4}, groups: [0.5, 0.5]}", "{type: p_anneal, l1_coeff: {low: 1e-3, high: 1, log: on}, dict_size: 99}"],
    "sae[1].l1_coeff": ["[0.1, 0.2]", "{low: 0, high: 1}"],
    "sae[1].sparsity_warmup": ["0", "[0.1, 0.9]", "1"],
    "train.samples": ["128", "1e6", "9_001"],
    "train.batch_size": ["1", "[64, 128]", "{low: 64, high: 128, step: 32}", "900"],
    "train.lr": ["null", "[null, 1e-3]", "1"],
    "train.eval_every": ["128", "9000", "1234"],
    "train.dead_after": ["1", "1e9", "{low: 10, high: 1000, log: yes}"],
    "train.warmup": ["0", "{low: 0, high: 0.8}", "[0, 0.5, 0.8]"],
    "seeds": ["[0]", "[5, 4, 3, 2, 1]"],
    "search.sampler": ["grid", "cmaes", "tpe", "random"],
    "search.points": ["null", "1", "20"],
    "search.enqueue": ["[]", "[{k: 16}, {l1_coeff: 0.1, lr: 5e-3}, {type: topk, dict_size: 512}]"],
    "search.strata": ["[type]", "[type, k, dict_size, batch_size]", "[type, l1_coeff, lr, sparsity_warmup]", "[type, dict_size, groups]"],
    "search.objective": ["eval/mse", "eval/l0"],
    "prune": ["{pruner: none}", "{pruner: median, warmup: 100, startup_trials: 0}", "{pruner: hyperband, reduction_factor: 2}", "{pruner: pareto, margin: 0}",
              "{pruner: threshold, upper: 1}"],
}  # fmt: skip


@settings(fuzz, max_examples=500)
@given(choice=st.dictionaries(st.sampled_from(sorted(ALTERNATIVES)), st.integers(0, 9), max_size=5))
def test_fuzz_combinations_of_good_values(folder: Path, choice: dict[str, int]) -> None:
    """What passes the rules can be planned, and every end of its space can be trained."""
    settings = tuple(f"{key}={ALTERNATIVES[key][i % len(ALTERNATIVES[key])]}" for key, i in choice.items())
    event("valid" if judge(folder, FUZZ_BASE.encode(), settings) else "refused")


@settings(fuzz, max_examples=400)
@given(setting=st.text(max_size=12) | st.text(string.printable, max_size=40))
def test_fuzz_override_text(folder: Path, setting: str) -> None:
    judge(folder, FUZZ_BASE.encode(), (setting,))
