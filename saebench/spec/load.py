"""Read and check a spec file: report all problems at once, each with its position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from saebench.config import FIXED_TRAIN_FIELDS, SAE_CONFIGS, TrainConfig, default_batch_size
from saebench.hub import width_of
from saebench.spec.accepts import BAD
from saebench.spec.arms import Arms, read_arms, read_search
from saebench.spec.draft import Draft
from saebench.spec.files import resolve_files
from saebench.spec.grammar import SweepSpec, Value
from saebench.spec.nodes import Leaf, Problem, Table, complaint, from_python
from saebench.spec.overrides import override
from saebench.spec.reading import Reader
from saebench.spec.rules import check
from saebench.spec.source import compose, read_text
from saebench.spec.synonyms import synonym_hint


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Return the spec of a file, with `KEY=VALUE` overrides applied. Relative paths in it start at its folder.

    Raises SpecError: one line per problem, `file:line:column: key: value: rule`.
    """
    return load_text(read_text(Path(path)), path, overrides)


def load_text(text: str, path: str | Path, overrides: Sequence[str] = ()) -> SweepSpec:
    """Do `load_spec` on the text that `read_text` returned for `path`; a pipe can be read only once."""
    root, problems = compose(text, "stdin" if str(path) == "-" else str(path))
    for setting in overrides:
        root = override(root, setting)
    return _read(root, problems, folder_of(path))


def folder_of(path: str | Path) -> Path:
    """Return the folder of a spec's file; for a pipe or the standard input, the working directory."""
    path = Path(path)
    return path.absolute().parent if path.is_file() else Path.cwd()


def parse_spec(
    values: Mapping[str, Any], overrides: Sequence[str] = (), folder: str | Path | None = None, label: str = "spec"
) -> SweepSpec:
    """Return the spec from a mapping as YAML would give it: strings, numbers, lists, {low, high}. Relative paths start
    at `folder`, by default the working directory; messages name `label` in place of the file."""
    root = from_python(values, label)
    if not isinstance(root, Table):
        raise complaint([Problem(root.place, "", "a spec is a mapping")])
    for setting in overrides:
        root = override(root, setting)
    return _read(root, [], Path(folder or Path.cwd()).absolute())


def _read(root: Table, problems: Sequence[Problem], folder: Path) -> SweepSpec:
    reader = Reader(root)
    reader.problems += problems
    values: dict[str, Any] = {}
    for name, (place, node) in root.entries.items():
        if name not in SweepSpec.model_fields:
            reader.unknown(place, "", name, SweepSpec.model_fields, _moved_hint(name))
        elif name not in ("sae", "train", "search"):
            value = reader.field(SweepSpec, name, node, name)
            if value is not BAD:
                values[name] = value
    reader.missing(SweepSpec, root, "")
    arms = read_arms(reader, root)
    values["sae"] = tuple(arm for _, arm in arms)
    values["train"] = _train(reader, root)
    values["search"] = read_search(reader, root, [arm for _, arm in arms])
    values |= resolve_files(values, folder)
    _rules(reader, values, arms)
    if reader.problems:
        raise complaint(reader.problems)
    return SweepSpec(**values)


def _rules(reader: Reader, values: dict[str, Any], arms: Arms) -> None:
    unread = frozenset(problem.key for problem in reader.problems)
    draft = Draft(SweepSpec.model_construct(**values), tuple(arms), unread=unread)
    if isinstance(draft.get("data", "model"), str):
        draft = replace(draft, d_in=width_of(draft.spec.data))
    for key, rule in check(draft):
        if key not in unread:
            reader.broken(key, rule)


def _moved_hint(name: str) -> str:
    """Return a hint about the section of a key that was given at the top level by mistake."""
    if name in TrainConfig.model_fields:
        return f"did you mean train.{name}?"
    if any(name in config.model_fields for config in SAE_CONFIGS.values()):
        return f"{name} belongs to an arm, under sae"
    return synonym_hint(name)


def _train(reader: Reader, root: Table) -> dict[str, Value]:
    if "train" not in root.entries:
        return {}
    table = reader.table(root.entries["train"][1], "train")
    found: dict[str, Value] = {}
    for name, (place, node) in (table.entries if table else {}).items():
        if name not in TrainConfig.model_fields:
            reader.unknown(place, "train", name, TrainConfig.model_fields, _train_hint(name))
        elif name in FIXED_TRAIN_FIELDS and not isinstance(node, Leaf):
            reader.refuse(node, f"train.{name}", "must be one value: trials are compared at the same of it")
        else:
            value = reader.searchable(TrainConfig, name, node, f"train.{name}")
            if value is not BAD:
                found[name] = value  # type: ignore[assignment]
    reader.missing(TrainConfig, table, "train")
    if "batch_size" not in (table.entries if table else {}) and isinstance(found.get("samples"), int):
        found["batch_size"] = default_batch_size(found["samples"])  # type: ignore[arg-type]
    return found


def _train_hint(name: str) -> str:
    owners = [other for other, config in SAE_CONFIGS.items() if name in config.model_fields]
    return f"{name} belongs to an arm, under sae" if owners else synonym_hint(name)
