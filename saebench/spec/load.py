"""Read and check a spec file: report all problems at once, each with its position."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from saebench.arrays import open_embeddings
from saebench.config import (
    FILE_FORMATS,
    FIXED_TRAIN_FIELDS,
    SAE_CONFIGS,
    Config,
    DataConfig,
    TrainConfig,
    default_batch_size,
)
from saebench.errors import DataError
from saebench.hub import width_of
from saebench.spec.accepts import BAD, did_you_mean, rule_of
from saebench.spec.draft import Draft
from saebench.spec.grammar import Arm, SweepSpec, Value, options
from saebench.spec.nodes import Items, Leaf, Node, Place, Problem, Table, complaint, from_python, join
from saebench.spec.overrides import override
from saebench.spec.reading import Reader
from saebench.spec.rules import check
from saebench.spec.source import compose, read_text
from saebench.spec.synonyms import meant
from saebench.sweep_config import EvalConfig, SearchConfig


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
    arms = _arms(reader, root)
    values["sae"] = tuple(arm for _, arm in arms)
    values["train"] = _train(reader, root)
    values["search"] = _search(reader, root, [arm for _, arm in arms])
    if isinstance(values.get("data"), DataConfig):
        values["data"] = _resolved(values["data"], folder)
    if isinstance(values.get("eval"), EvalConfig) and isinstance(values["eval"].second_encoder, str):
        second = _local(values["eval"].second_encoder, folder)
        values["eval"] = values["eval"].model_copy(update={"second_encoder": second})
    _rules(reader, values, arms)
    if reader.problems:
        raise complaint(reader.problems)
    return SweepSpec(**values)


def _rules(reader: Reader, values: dict[str, Any], arms: Sequence[tuple[int, Arm]]) -> None:
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
    return meant(name)


# --- arms, train, search ---------------------------------------------------------------------------------------------


def _arms(reader: Reader, root: Table) -> list[tuple[int, Arm]]:
    if "sae" not in root.entries:
        return []
    _, node = root.entries["sae"]
    reader.nodes["sae"] = node
    if not isinstance(node, Items):
        reader.refuse(node, "sae", "must be a list of arms, such as [{type: topk, k: 32, expansion_factor: 4}]")
        return []
    if not node.items:
        reader.refuse(node, "sae", "needs at least one arm")
    found = [(i, _arm(reader, item, f"sae[{i}]")) for i, item in enumerate(node.items)]
    return [(i, arm) for i, arm in found if arm is not None]


def _arm(reader: Reader, node: Node, key: str) -> Arm | None:
    table = reader.table(node, key)
    if table is None:
        return None
    if "type" not in table.entries:
        reader.complain(table.place, f"{key}.type", f"is missing: one of {', '.join(SAE_CONFIGS)}")
        return None
    _, named = table.entries["type"]
    name = named.text if isinstance(named, Leaf) and named.text is not None else getattr(named, "value", None)
    reader.nodes[f"{key}.type"] = named
    if not isinstance(name, str) or name not in SAE_CONFIGS:
        hint = did_you_mean(name, SAE_CONFIGS) if isinstance(name, str) else "one type per arm"
        reader.refuse(named, f"{key}.type", f"must be one of {', '.join(SAE_CONFIGS)}" + (f" ({hint})" if hint else ""))
        return None
    before = len(reader.problems)
    model = SAE_CONFIGS[name]
    params: dict[str, Value] = {}
    for field, (place, value) in table.entries.items():
        if field == "type":
            continue
        if field not in model.model_fields:
            reader.unknown(place, key, field, model.model_fields, _arm_hint(field, name))
            continue
        read = reader.searchable(model, field, value, join(key, field))
        if read is not BAD:
            params[field] = read  # type: ignore[assignment]
    reader.missing(model, table, key)
    arm = Arm.model_construct(type=name, params=params)
    if len(reader.problems) == before:
        _whole(reader, model, params, table.place, key)
    return arm


def _arm_hint(field: str, name: str) -> str:
    if field in TrainConfig.model_fields:
        return f"did you mean train.{field}?"
    owners = [other for other, config in SAE_CONFIGS.items() if field in config.model_fields]
    if field == "k" and "target_l0" in SAE_CONFIGS[name].model_fields:
        return f"{name} is held at a sparsity by target_l0, which means the same on average"
    return (
        f"{name} has no {field}; {', '.join(owners)} {'has' if len(owners) == 1 else 'have'}"
        if owners
        else meant(field)
    )


def _whole(reader: Reader, model: type[Config], params: Mapping[str, Value], place: Place, key: str) -> None:
    """Check the rules between the fields of one type, with one value of each."""
    try:
        model(**{name: options(name, value)[0] for name, value in params.items()})
    except ValidationError as error:
        reader.complain(place, key, rule_of(error))


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
    return f"{name} belongs to an arm, under sae" if owners else meant(name)


def _search(reader: Reader, root: Table, arms: Sequence[Arm]) -> SearchConfig:
    if "search" not in root.entries:
        return SearchConfig()
    node = root.entries["search"][1]
    search: SearchConfig = reader.section(SearchConfig, node, "search", skip=("enqueue",))
    if not isinstance(node, Table) or "enqueue" not in node.entries:
        return search
    return search.model_copy(update={"enqueue": _enqueue(reader, node.entries["enqueue"][1], arms)})


def _enqueue(reader: Reader, node: Node, arms: Sequence[Arm]) -> tuple[dict[str, Any], ...]:
    """Read known-good points: each key is a field of one of the arms or of `train`, each value one that it accepts."""
    reader.nodes["search.enqueue"] = node
    if not isinstance(node, Items):
        reader.refuse(node, "search.enqueue", "must be a list of points, such as [{lr: 1e-3}]")
        return ()
    models: list[type[Config]] = [*(SAE_CONFIGS[arm.type] for arm in arms), TrainConfig]
    found = []
    for i, item in enumerate(node.items):
        table = reader.table(item, f"search.enqueue[{i}]")
        point: dict[str, Any] = {}
        for name, (place, value) in (table.entries if table else {}).items():
            key = join(f"search.enqueue[{i}]", name)
            owners = [model for model in models if name in model.model_fields]
            if not owners or name in FIXED_TRAIN_FIELDS:
                known = {field for model in models for field in model.model_fields} - FIXED_TRAIN_FIELDS
                reader.unknown(place, f"search.enqueue[{i}]", name, sorted(known))
            else:
                point[name] = _by_any(reader, owners, name, value, key)
        found.append({name: value for name, value in point.items() if value is not BAD})
    return tuple(found)


def _by_any(reader: Reader, models: Sequence[type[Config]], name: str, node: Node, key: str) -> Any:
    """Return the value as read by the first model that accepts it: k = 2.5 is valid for batchtopk, not for topk."""
    attempts = [Reader(node) for _ in models]
    for attempt, model in zip(attempts, models, strict=True):
        value = attempt.field(model, name, node, key)
        if value is not BAD:
            return value
    reader.problems += attempts[0].problems
    return BAD


# --- files -----------------------------------------------------------------------------------------------------------


def _resolved(data: DataConfig, folder: Path) -> DataConfig:
    """Make relative files and folders absolute, from the spec's folder; keep names of hub models and datasets."""
    update: dict[str, Any] = {}
    model, dataset = getattr(data, "model", None), getattr(data, "dataset", None)
    own = {key: getattr(data, key, None) for key in ("embeddings", "texts", "ids", "labels")}
    if isinstance(own["embeddings"], str):
        found: dict[str, Any] = {
            key: _beside(value, folder, key) for key, value in own.items() if isinstance(value, str)
        }
        with contextlib.suppress(DataError):  # a rule reports the problem
            found["num_examples"] = min(data.num_examples, open_embeddings(found["embeddings"]).count)
        return data.model_copy(update={**found, **_named_after(found["embeddings"], own["embeddings"], data)})
    if isinstance(model, str):
        update["model"] = _local(model, folder)
    path = getattr(dataset, "path", None)
    if dataset is not None and isinstance(path, str):
        files = dataset.data_files
        if path in FILE_FORMATS:
            files = _file(files, folder) if isinstance(files, str) else [_file(f, folder) for f in files or ()] or None
        else:
            path = _local(path, folder)
        update["dataset"] = dataset.model_copy(update={"path": path, "data_files": files})
    return data.model_copy(update=update)


def _beside(name: str, folder: Path, key: str) -> str:
    """Return the path from the spec's folder; if there is no such file, the name is a column of a Parquet file."""
    path = os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
    return path if key == "embeddings" or os.path.exists(path) else name


def _named_after(path: str, as_given: str, data: DataConfig) -> dict[str, Any]:
    """Return model and dataset named after the resolved path, if they were named after the embeddings' path."""
    dataset = data.dataset.model_copy(update={"data_files": path})
    found: dict[str, Any] = {"dataset": dataset} if data.dataset.data_files in (as_given, path) else {}
    return found | ({"model": path} if data.model in (as_given, path) else {})


def _local(name: str, folder: Path) -> str:
    """Return `name`, made absolute if it is an existing file or folder."""
    path = os.path.join(folder, os.path.expanduser(name))
    return os.path.normpath(path) if name and os.path.exists(path) else name


def _file(name: str, folder: Path) -> str:
    return name if "://" in name else os.path.normpath(os.path.join(folder, os.path.expanduser(name)))
