"""plan, validate, schema and init on the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from saebench.cli import cli
from saebench.cli import plan as cli_plan
from saebench.errors import SpecError, UserError
from saebench.forecast import advice
from saebench.plan import make_plan
from saebench.spec import load_spec, parse_spec
from saebench.spec.schema import schema

SPEC = """\
name: tiny
description: "two [arms]: which is better?"
data: {model: nowhere/none, dataset: {path: a/b}, num_examples: 10_000}
sae:
  - {type: topk, k: [8, 16], dict_size: 128}
  - {type: batchtopk, k: 8, dict_size: 128}
train: {samples: 100_000, batch_size: 1000, lr: {low: 1e-4, high: 1e-2, log: true}}
seeds: [0, 1]
search: {sampler: random, points: 3}
prune: {pruner: asha, warmup: 10_000}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def output(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exception is None, result.exception
    assert result.exit_code == 0
    return result.output


# --- plan ------------------------------------------------------------------------------------------------------------


def test_plan_shows_strata_work_and_notes(spec: Path, tmp_path: Path) -> None:
    lines = " ".join(output("plan", spec).split())
    for said in (
        "tiny: two [arms]: which is better?",
        "topk-k8-n128 lr 0.0001..0.01 log 3 at most 8 rungs 10,000, 30,000, 90,000",
        "batchtopk-k8-n128",
        "3 strata, 9 points, at most 24 trials (random); seeds 0, 1; the first searches, ",
        "the others measure the chosen point",
        "up to 10,000 texts with nowhere/none (width not known before the model is loaded), once; not cached yet",
        str(tmp_path / "saebench-cache"),
        "100,000 examples per trial, at most 2,400,000 in all",
        "20 times per trial, every 5,000 examples, on about 333 validation texts; objective eval/fvu",
        "asha: not among the best 1/3 at a rung",
    ):
        assert said in lines, said
    assert "note" not in lines
    assert "tpe learns after the first 10 points" in output("plan", spec, "--set", "search.sampler=tpe")


def test_plan_cuts_no_name_of_a_stratum_and_counts_one_as_one(spec: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=60, highlight=False)
    found = make_plan(load_spec(spec, ["seeds=[0]", "search.points=1", "sae[0].k=8", "sae[1].k=[8, 16]"]))
    console.print(cli_plan._strata_table(found))
    assert "batchtopk-k16-n128" in capsys.readouterr().out
    one = output("validate", spec, "--set", "sae=[{type: topk, k: 8, dict_size: 99}]", "--set", "seeds=[0]",
                 "--set", "search.points=1")  # fmt: skip
    assert one == f"{spec}: valid: 1 stratum, 1 point, 1 trial\n"


def test_plan_json_is_complete(spec: Path) -> None:
    found = json.loads(output("plan", spec, "--json", "--set", "data.model=x/y", "--set", "seeds=[4]"))
    assert [stratum["id"] for stratum in found["strata"]] == ["topk-k8-n128", "topk-k16-n128", "batchtopk-k8-n128"]
    first = found["strata"][0]
    assert first["space"] == {"lr": {"low": 1e-4, "high": 1e-2, "log": True, "step": None}}
    assert first["fixed"] == {"samples": 100_000, "batch_size": 1000}
    assert (first["points"], first["prune_from"], first["rungs"]) == (3, 10_000, [10_000, 30_000, 90_000])
    assert (found["points"], found["trials"], found["seeds"]) == (9, 21, [4])
    assert found["work"]["train_examples"] == 2_100_000
    assert found["cache"]["cached"] is False
    assert found["notes"] == ["one seed: differences between strata will have no interval over seeds"]


def test_plan_takes_the_width_from_a_cached_corpus_and_says_that_nothing_is_encoded(
    spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import saebench.stores.cache as cache

    entry = SimpleNamespace(directory=Path("/cache/entry"), d_in=48, num_train=900, num_validation=40, num_test=60)
    monkeypatch.setattr(cache, "find", lambda data, folder: entry)  # noqa: ARG005 - the signature of find
    arm = "sae[1]={type: batchtopk, k: 8, expansion_factor: 2}"
    lines = " ".join(output("plan", spec, "--no-measure", "--set", arm).split())
    assert "encode nothing: 1,000 texts are cached in /cache/entry (width 48)" in lines
    assert "batchtopk-k8-n96" in lines
    assert "FLOPs in the SAEs" in lines


def test_plan_without_the_cache_says_that_every_trial_encodes(spec: Path) -> None:
    assert "in every trial: data.cache is off" in " ".join(output("plan", spec, "--set", "data.cache=off").split())


def test_plan_writes_nothing(spec: Path, tmp_path: Path) -> None:
    output("plan", spec)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    "command", [["plan", "--no-measure"], ["plan", "--json", "--no-measure"], ["validate"], ["schema"]]
)
def test_no_command_about_specs_imports_torch_or_mlflow(command: list[str], repository: Path) -> None:
    code = (
        "import sys; from saebench.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "heavy = {'torch', 'mlflow', 'optuna', 'pandas', 'sentence_transformers', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    arguments = [] if command == ["schema"] else [str(repository / "sweeps" / "quickstart.yaml")]
    run = subprocess.run(
        [sys.executable, "-c", code, *command, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


# --- validate --------------------------------------------------------------------------------------------------------


def test_validate_says_what_the_spec_amounts_to(spec: Path) -> None:
    assert output("validate", spec) == f"{spec}: valid: 3 strata, 9 points, at most 24 trials\n"
    one = output("validate", spec, "--set", "replicate=all", "--set", "search.refine=0")
    assert one == f"{spec}: valid: 3 strata, 9 points, 18 trials\n"


def test_validate_reports_the_problems_of_all_files(spec: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(SPEC.replace("samples: 100_000", "samples: -1").replace("seeds: [0, 1]", "seed: 0"))
    result = run("validate", other, tmp_path / "none.yaml", spec)
    assert isinstance(result.exception, SpecError)
    assert str(result.exception).replace(f"{tmp_path}/", "").split("\n") == [
        "other.yaml:7:18: train.samples: -1: must be above 0",
        "other.yaml:8:1: seed: unknown key (here that is seeds)",
        "none.yaml: No such file or directory",
    ]
    assert "tiny.yaml: valid" in result.output


def test_a_wrong_spec_is_exit_code_2_and_lines_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("name: [\n")
    code = "from saebench.cli import main; main()"
    for command in ("plan", "validate"):
        run = subprocess.run(
            [sys.executable, "-c", code, command, "s.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert run.returncode == 2
        assert run.stderr.startswith("saebench: s.yaml:2:1: not YAML:")
        assert run.stderr.count("\n") == 1


# --- schema and init -------------------------------------------------------------------------------------------------


def test_schema_prints_the_schema() -> None:
    assert json.loads(output("schema")) == json.loads(json.dumps(schema()))


def test_the_page_about_specs_has_every_key_as_it_is_now(repository: Path) -> None:
    page = (repository / "docs" / "spec.md").read_text("utf-8")
    assert page.endswith(output("schema", "--markdown")), "write its tables anew: saebench schema --markdown"


@pytest.mark.parametrize("page", ["README.md", "docs/spec.md"])
def test_the_specs_that_pages_show_are_valid_and_planned_without_advice(repository: Path, page: str) -> None:
    (spec,) = re.findall(r"^```yaml\n(.*?)^```", (repository / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert advice(make_plan(parse_spec(yaml.safe_load(spec)))) == []


def test_init_writes_a_spec_that_validates_and_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bert study.yaml"
    assert output("init", path) == f"{path}: written; next: saebench plan '{path}'\n"
    assert load_spec(path).name == "bert_study"
    assert "valid: " in output("validate", path)
    assert "#" in path.read_text()


def test_init_prints_to_stdout_on_request() -> None:
    text = output("init", "-")
    assert text.startswith("# A sweep")
    assert "name: my_sweep" in text


def test_init_never_overwrites_and_says_why_it_cannot_write(spec: Path, tmp_path: Path) -> None:
    def fails(path: Path) -> Any:
        result = run("init", path)
        assert isinstance(result.exception, UserError)
        return str(result.exception)

    assert fails(spec) == f"{spec}: exists already, and init never overwrites; give another FILE"
    assert spec.read_text() == SPEC
    assert fails(tmp_path / "no" / "where.yaml").endswith("where.yaml: cannot be written: No such file or directory")
