"""Every block of code in README and docs runs, every command they mention exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pandas as pd
import pytest
import yaml
from click.testing import CliRunner
from sae_examples import TYPES

from saebench.cli import cli
from saebench.saes import SAE_TYPES
from saebench.spec import load_spec, parse_spec

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_CODE = {
    "text": "formulas, diagrams, trees of files and output: no line of it may be a command",
    "bibtex": "a citation",
    "console": "commands for machines that no test has, clusters and containers; what they name has to exist, Python "
    "in them runs, and tests/test_compose.py starts the commands of the compose file",
}
"""Language of a block that does not run whole -> why."""
PROGRAMS = {
    *("docker", "kubectl", "openssl", "pip", "python", "ray", "saebench", "sbatch", "ssh"),
    *("chmod", "export", "nohup", "umask"),
}
"""With which a command of a console block begins."""
OF_THE_READER = {"sweeps/mine.yaml", "docker/secrets/db_password", "docker/secrets/ray_token"}
"""Files that a page tells the reader to make."""
BASE = {
    "name": "x",
    "data": {"model": "a/b", "dataset": {"path": "c/d"}, "num_examples": 10_000},
    "sae": [{"type": "topk", "k": 8, "dict_size": 64}],
    "train": {"samples": 100_000},
}
"""The smallest spec, of which a page may show a part."""
SMALL: dict[str, Any] = {
    "data": {"num_examples": 500, "holdout": 0.2},
    "train": {"samples": 1500, "batch_size": 128, "lr": 3e-3, "lr_factor": 1},
    "search": {"sampler": "grid"},
    "seeds": [0, 1],
    "prune": {"pruner": "none"},
    "run": {"devices": "cpu"},
}
"""What makes a documented sweep one of seconds."""
STANDS_FOR = {
    "NAME": "my_texts",
    "A B": "my_texts quickstart",
    "FOLDER": "exported",
    "papers.csv": "papers.csv",
    "https://mlflow.example": "sqlite:///mlflow.db",
}
"""A reader's own name in a command -> one that is in the workspace."""
RUN_ELSEWHERE = {
    "make": "make demo and make test are what .ci/run runs",
    "git": "cloning",
    "cd": "cloning",
    "mkdocs": "tests/test_site.py",
    "pip": "tests/test_install.py",
    "source": "tests/test_install.py",
    "eval": "completion: tests/cli/test_habits.py",
    "python": "experiments are run by hand; the script has to exist",
    ".ci/bounds": "a job of its own",
    "saebench ui": "tests/test_network.py",
    "docker": "docker/README.md",
}


SMALLER = {
    "sweep papers.yaml": [
        "--set", "train.samples=1500", "--set", "train.batch_size=128", "--set", "search.points=1",
        "--set", "seeds=[0]",
        "--set", "sae=[{type: topk, k: 8, dict_size: 96}]", "--set", "run.devices=cpu",
    ],
    "plan papers.yaml": ["--no-measure"],
    "init --data": ["--no-measure"],
}  # fmt: skip
"""The beginning of a command -> what makes it one of seconds."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text("utf-8").splitlines()
    start, language = None, ""
    for number, line in enumerate(lines, 1):
        if start is None and (found := re.match(r"\s*```(\w*)", line)):
            start, language = number, found[1]
        elif start is not None and line.strip() == "```":
            yield Block(page, start, language, "\n".join(lines[start : number - 1]) + "\n")
            start = None
    assert start is None, f"{page}: a block that does not end"


BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON = sorted({block.page for block in BLOCKS if block.language == "python"})


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, empty_database: Path, glosses: Path, minilm_path: str) -> Path:
    """A folder with a reader's files: spec.yaml (docs/spec.md's), my_texts.jsonl, papers.csv, quickstart.yaml."""
    assert minilm_path
    folder = tmp_path_factory.mktemp("reader")
    (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
    rows = pd.read_parquet(glosses).head(900).rename(columns={"label": "topic"})
    rows["topic"] = rows["topic"].str.partition(".")[0]  # of few texts, classes that each part has ten of
    rows["year"] = 1990 + rows.index % 30
    (folder / "other_corpus.txt").write_text("\n".join(f"release {n} of a parser, with bugs fixed" for n in range(60)))
    rows.to_json(folder / "my_texts.jsonl", orient="records", lines=True)
    rows.rename(columns={"text": "abstract", "topic": "field"})[["abstract", "field"]].to_csv(
        folder / "papers.csv", index=False
    )
    (spec,) = [block for block in of("yaml") if block.page.name == "spec.md" and "name: my_texts" in block.text]
    arms = [{"type": "topk", "k": 16, "dict_size": 256}, {"type": "jumprelu", "target_l0": 16, "dict_size": 256}]
    _write(folder / "spec.yaml", yaml.safe_load(spec.text), arms)
    quickstart = yaml.safe_load((ROOT / "sweeps" / "quickstart.yaml").read_text("utf-8"))
    quickstart["data"]["dataset"]["data_files"] = str(glosses)
    arms = [{"type": kind, "k": 16, "dict_size": 256} for kind in ("topk", "batchtopk")]
    _write(folder / "sweeps" / "quickstart.yaml", quickstart, arms)
    return folder


def _write(path: Path, spec: dict[str, Any], arms: list[dict[str, Any]]) -> None:
    small = {
        **spec,
        **{key: {**spec.get(key, {}), **more} if isinstance(more, dict) else more for key, more in SMALL.items()},
    }
    small["search"] = SMALL["search"]
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**small, "sae": arms}))


@pytest.fixture
def reader(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workspace as working directory, both sweeps in it."""
    monkeypatch.chdir(workspace)
    monkeypatch.delenv("SAEBENCH_RUNS")
    monkeypatch.setenv("SAEBENCH_CACHE", str(workspace / "cache"))
    for spec in ("spec.yaml", "sweeps/quickstart.yaml"):
        if not (workspace / "runs" / ("my_texts" if spec == "spec.yaml" else "quickstart")).exists():
            run(["sweep", spec])
    return workspace


def run(arguments: list[str], stdin: str | None = None) -> str:
    result = CliRunner().invoke(cli, arguments, input=stdin)
    assert result.exit_code == 0, f"{shlex.join(arguments)}: {result.output}{result.exception!r}"
    return result.output


def test_every_block_has_a_language_that_a_test_knows() -> None:
    known = {"python", "sh", "yaml", *NOT_CODE}
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in known] == []
    assert len(BLOCKS) > 5
    for page in PAGES:
        text = page.read_text("utf-8")
        fences = len(re.findall(r"^\s*(?:```|~~~)", text, re.M))
        assert fences == 2 * len([block for block in BLOCKS if block.page == page]), f"{page}: a fence of another form"
        assert not re.search(r"<pre|<code|^\.\. code", text, re.M), f"{page}: code that is no fenced block"


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_a_text_block_holds_no_code(block: Block) -> None:
    """What could be run would be hidden from the tests that run it."""
    code = r"\s*(\$ |>>> |import \w|from \w+ import |def \w+\(|name: \w|data: *\{|({}) )".replace(
        "{}", "|".join(map(re.escape, sorted(PROGRAMS | {"git", "make", "cd"})))
    )
    assert [line for line in block.text.splitlines() if re.match(code, line)] == []


@pytest.mark.parametrize("block", of("console"), ids=str)
def test_what_a_console_block_names_exists(block: Block, tmp_path: Path) -> None:
    """Programs are known ones, files of this repository are there, keys and options are ours, Python compiles."""
    for script in re.findall(r"python -c '(.*?)'", block.text, re.S):
        compile(script, str(block), "exec")
    text = re.sub(r"python -c '.*?'", "python -c SCRIPT", block.text, flags=re.S)
    for words in commands(Block(block.page, block.line, block.language, text)):
        while re.fullmatch(r"\w+=.*", words[0]) and len(words) > 1:
            words = words[1:]
        assert words[0] in PROGRAMS, f"{block}: {words[0]}"
        for word in words:
            if re.match(r"(docker|sweeps|experiments)/[\w./-]+$", word) and word not in OF_THE_READER:
                assert (ROOT / word).exists(), f"{block}: {word}"
        ours = words[words.index("saebench") :] if "saebench" in words and words[0] in ("saebench", "nohup") else []
        if ours:
            check_options(ours[1:], str(block))
            changes = [change for flag, change in pairwise(words) if flag == "--set"]
            spec = tmp_path / "spec.yaml"
            spec.write_text(yaml.safe_dump(BASE))
            load_spec(spec, changes)


def test_the_python_of_a_console_block_copies_a_journal(tmp_path: Path) -> None:
    """docs/cluster.md: from a sweep's journal to a database that optuna-dashboard reads."""
    import optuna

    (script,) = [s for block in of("console") for s in re.findall(r"python -c '(.*?)'", block.text, re.S)]
    journal = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal")))
    optuna.create_study(storage=journal, study_name="x/topk").optimize(lambda trial: trial.suggest_float("lr", 0, 1), 2)
    to = f"sqlite:///{tmp_path}/optuna.db"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "journal"), to], check=True, timeout=120)
    assert len(optuna.load_study(study_name="x/topk", storage=to).trials) == 2


@pytest.mark.slow
@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_blocks_run_in_the_order_of_the_page(page: Path, reader: Path) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in of("python"):
        if block.page == page:
            code = "\n" * block.line + block.text  # a traceback names the line of the page
            exec(compile(code, str(block.page), "exec"), names)
    assert (reader / "runs").is_dir()


def commands(block: Block) -> Iterator[list[str]]:
    """The command lines of a shell block, as words; comments are dropped, a line may end in a backslash."""
    for line in block.text.replace("\\\n", " ").splitlines():
        for name, here in STANDS_FOR.items():
            line = re.sub(rf"(?<![\w/]){re.escape(name)}(?![\w])", here, line)
        if words := shlex.split(line, comments=True):
            yield words


@pytest.mark.slow
@pytest.mark.parametrize("block", of("sh"), ids=str)
def test_shell_blocks_run(block: Block, reader: Path) -> None:
    assert reader
    for words in commands(block):
        if words[0] == "python":
            assert (ROOT / words[1]).is_file(), f"{block}: {words[1]}"
        if words[0] in RUN_ELSEWHERE or " ".join(words[:2]) in RUN_ELSEWHERE:
            continue
        assert words[0] == "saebench", f"{block}: {words[0]}: run it, or say in RUN_ELSEWHERE where that is done"
        stdin = None
        if "<" in words:
            stdin = Path(words[words.index("<") + 1]).read_text()
            words = words[: words.index("<")]
        if words[1] == "init":  # which overwrites nothing, and pages begin with it
            Path("papers.yaml").unlink(missing_ok=True)
        more = SMALLER.get(" ".join(words[1:3]), [])
        run([*words[1:], *more], stdin)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_yaml_blocks_are_valid_specs_or_parts_of_one(block: Block) -> None:
    parse_spec({**BASE, **yaml.safe_load(block.text)})


def mentioned() -> list[tuple[str, list[str]]]:
    """Every `saebench ...` in running text and tables, with the page and its words."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.S)
        for inline in re.findall(r"`(saebench [^`]+)`", text):
            words = inline.replace("|", " ").split()[1:]
            found.append((f"{page.name}: {inline}", words))
    return found


@pytest.mark.parametrize(("where", "words"), mentioned(), ids=lambda value: value if isinstance(value, str) else "")
def test_mentioned_commands_and_options_exist(where: str, words: list[str]) -> None:
    check_options([word.strip(",") for word in words], where)


def check_options(names: list[str], where: str) -> None:
    """Fail unless the command exists and has these options."""
    command: click.Command = cli
    context = click.Context(cli)
    if re.fullmatch(r"[a-z]+", names[0]):
        found = cli.get_command(context, names[0])  # type: ignore[attr-defined]
        assert found is not None, where
        command = found
    if isinstance(command, click.Group) and command is not cli and len(names) > 1:
        found = command.get_command(context, names[1])
        assert found is not None, where
        command = found
    options = {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
    for name in names:
        if name.startswith("--") and name not in ("--version", "--help"):
            assert name.split("=")[0] in options, where


def test_the_powers_of_the_default_lr_are_those_of_the_types() -> None:
    """A row of docs/choosing.md per type."""
    text = (ROOT / "docs" / "choosing.md").read_text()
    said = {}
    for line in re.findall(r"^\| `\w+` \| [\d.]+ (?:\| [-/;\d ]+ ){5}\|$", text, re.MULTILINE):
        kind, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        said[kind.strip("`")] = [[_number(part) for part in cell.split(";")] for cell in cells]
    assert {*said} == {*TYPES}
    for kind, cells in said.items():
        rule = SAE_TYPES[kind].lr_rule
        steps = [-rule.steps - rule.steps_at_8, -rule.steps, -rule.steps - rule.steps_at_128]
        steps = steps if len({*steps}) > 1 else steps[:1]
        expected = [[rule.share], [rule.l0], [rule.width], [rule.width_by_l0], steps, [rule.batch_by_l0]]
        for numbers, meant in zip(cells, expected, strict=True):
            assert numbers == pytest.approx(meant), kind
    by_width = {kind: SAE_TYPES[kind].lr_rule.steps_at_8_by_width for kind in TYPES}
    found = re.search(r"power of s of `(\w+)` gains ([\d/]+) for each factor of 4 in w", text)
    assert found is not None
    assert {kind: gain for kind, gain in by_width.items() if gain} == {found[1]: float(Fraction(found[2]))}


def _number(cell: str) -> float:
    return 0.0 if cell.strip() == "-" else float(Fraction(cell.strip()))
