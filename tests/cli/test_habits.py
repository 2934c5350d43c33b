"""What people type before they know the commands, and what completes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

import saebench
from saebench.cli import COMMANDS, cli, habits
from saebench.config import SAE_CONFIGS, DataConfig, DatasetConfig, TrainConfig
from saebench.errors import SpecError
from saebench.spec import SweepSpec, parse_spec
from saebench.spec.synonyms import MEANT

SPEC: dict[str, Any] = {
    "name": "owls",
    "data": {"model": "a/b", "dataset": {"path": "c/d"}, "num_examples": 10_000},
    "sae": [{"type": "topk", "k": 8, "dict_size": 64}],
    "train": {"samples": 100_000},
}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture
def owls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/owls with two trials, and runs/other; no scheduler, no record in MLflow."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAEBENCH_RUNS", "runs")
    for name in ("owls", "other"):
        folder = tmp_path / "runs" / name
        (folder / "trials" / "0000").mkdir(parents=True)
        (folder / "trials" / "0001").mkdir()
        (folder / "lock.json").write_text(json.dumps({"spec": {**SPEC, "name": name}, "d_in": 8}))
    return tmp_path / "runs" / "owls"


@pytest.mark.parametrize(("word", "command"), habits.ALIASES.items())
def test_an_alias_is_the_command(word: str, command: str) -> None:
    assert word not in COMMANDS
    assert run(word, "--help").output == run(command, "--help").output


@pytest.mark.parametrize("word", habits.COMMANDS)
def test_what_is_no_command_names_the_one_that_is_meant(word: str) -> None:
    result = run(word)
    assert result.exit_code == 2
    assert f"No such command {word!r}: {habits.COMMANDS[word]}." in result.output
    assert word not in COMMANDS


def test_the_commands_that_hints_name_exist() -> None:
    for hint in (*habits.COMMANDS.values(), *habits.OPTIONS.values()):
        for words in hint.split("saebench ")[1:]:
            assert words.split()[0].strip("`;") in COMMANDS, hint


@pytest.mark.parametrize("option", habits.OPTIONS)
def test_what_is_no_option_names_what_to_write(option: str) -> None:
    result = run("sweep", "x.yaml", option, "1")
    assert result.exit_code == 2
    assert habits.OPTIONS[option] in " ".join(result.output.split())


def test_help_and_version() -> None:
    assert run("help").output == run("--help").output
    assert run("help", "sweep").output == run("sweep", "--help").output
    assert run("help", "run").output == run("sweep", "--help").output
    said = f"saebench, version {saebench.__version__}\n"
    assert run("version").output == run("--version").output == run("-V").output == said


def test_rm_asks_and_removes_only_this_sweep(owls: Path) -> None:
    refused = run("rm", "owls")
    assert (refused.exit_code, owls.exists()) == (1, True)
    assert "add --yes" in str(refused.exception)
    done = run("rm", "owls", "--yes")
    assert done.exit_code == 0, done.output
    assert "2 trials" in done.output
    assert "its runs in MLflow stay" in done.output, "this one has none"
    assert [path.name for path in owls.parent.iterdir()] == ["other"]


def test_rm_follows_no_link(owls: Path) -> None:
    (owls.parent / "link").symlink_to(owls)
    result = run("rm", "link", "--yes")
    assert "is a symbolic link" in str(result.exception)
    assert owls.exists()


def test_rm_leaves_a_sweep_at_work(owls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saebench.runs.holder.holder", lambda paths: {"pid": 1, "host": "h", "at": "now"})  # noqa: ARG005
    result = run("rm", "owls", "--yes")
    assert "saebench stop owls" in str(result.exception)
    assert owls.exists()


def test_rm_puts_the_runs_into_mlflow_s_bin(owls: Path, empty_database: Path, tmp_path: Path) -> None:
    from saebench.tracking import server
    from saebench.tracking.remove import delete_runs, runs_of

    file = tmp_path / "mlflow.db"
    file.write_bytes(empty_database.read_bytes())
    uri = f"sqlite:///{file}"
    client = server.connect(uri)
    experiment = client.create_experiment("owls")
    parent = client.create_run(experiment).info.run_id
    children = [client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id for _ in range(3)]
    stranger = client.create_run(experiment).info.run_id
    assert set(runs_of(uri, experiment, parent)) == {parent, *children}
    delete_runs(uri, children[:1])
    where = {"uri": uri, "experiment_id": experiment, "run_id": parent}
    (owls / "lock.json").write_text(json.dumps({"spec": SPEC, "d_in": 8, "tracking": where}))
    result = run("rm", "owls", "-y")
    assert result.exit_code == 0, result.output
    assert "and 3 runs in MLflow" in result.output
    assert [r.info.run_id for r in client.search_runs([experiment])] == [stranger]


def test_a_dry_run_is_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(SPEC))
    monkeypatch.chdir(tmp_path)
    shown = run("run", "s.yaml", "--dry-run", "--resume", "--name", "other")
    assert shown.exit_code == 0, shown.output
    assert shown.output == run("plan", "s.yaml", "--set", "name=other").output
    assert not (tmp_path / "runs").exists()


def completed(words: list[str], incomplete: str) -> list[str]:
    return [item.value for item in ShellComplete(cli, {}, "saebench", "_X").get_completions(words, incomplete)]


def test_sweeps_and_trials_are_completed(owls: Path, tmp_path: Path) -> None:
    assert owls.exists()
    assert completed(["report"], "o") == ["other", "owls"]
    assert completed(["rm"], "ow") == ["owls"]
    assert completed(["status", "--runs-dir", str(tmp_path / "nothing")], "") == []
    assert completed(["export"], "ow") == ["owls/"]
    assert completed(["export"], "owls/00") == ["owls/0000", "owls/0001"]
    assert completed(["logs"], "owls/0001") == ["owls/0001"]
    assert "sweep" in completed([], "sw")


@pytest.mark.parametrize(("word", "key"), MEANT.items())
def test_a_word_of_another_tool_names_our_key(word: str, key: str) -> None:
    """Wherever it stands; and the key that is named exists."""
    fields = {name for config in SAE_CONFIGS.values() for name in config.model_fields}
    for model, at in ((TrainConfig, "train."), (DataConfig, "data."), (DatasetConfig, "data.dataset.")):
        fields |= {f"{at}{name}" for name in model.model_fields}
    fields |= {"seeds", "run.devices", "search.points"}
    named = key.split(":")[0].split(",")[0].split(" or ")[0]
    assert named in fields or named == "nothing"
    if word not in ("devices",) and word not in SweepSpec.model_fields:
        for values in ({**SPEC, word: 1}, {**SPEC, "train": {**SPEC["train"], word: 1}}):
            with pytest.raises(SpecError, match="unknown key") as error:
                parse_spec(values)
            assert key in str(error.value) or "did you mean" in str(error.value), str(error.value)


def test_jumprelu_with_k_names_target_l0() -> None:
    with pytest.raises(SpecError, match="jumprelu is held at a sparsity by target_l0"):
        parse_spec({**SPEC, "sae": [{"type": "jumprelu", "k": 8, "dict_size": 64}]})
