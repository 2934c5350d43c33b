"""Read the arms of a spec, and the known-good points that refer to their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from saebench.config import FIXED_TRAIN_FIELDS, SAE_CONFIGS, Config, TrainConfig
from saebench.spec.accepts import BAD, did_you_mean, rule_of
from saebench.spec.grammar import Arm, Value, options
from saebench.spec.nodes import Items, Leaf, Node, Place, Table, join
from saebench.spec.reading import Reader
from saebench.spec.synonyms import synonym_hint
from saebench.sweep_config import SearchConfig

Arms = list[tuple[int, Arm]]
"""Arms with their positions in the list `sae`."""


def read_arms(reader: Reader, root: Table) -> Arms:
    """Return the arms under `sae` that could be read, with their positions in the list."""
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
        else synonym_hint(field)
    )


def _whole(reader: Reader, model: type[Config], params: Mapping[str, Value], place: Place, key: str) -> None:
    """Check the rules between the fields of one type, with one value of each."""
    try:
        model(**{name: options(name, value)[0] for name, value in params.items()})
    except ValidationError as error:
        reader.complain(place, key, rule_of(error))


def read_search(reader: Reader, root: Table, arms: Sequence[Arm]) -> SearchConfig:
    """Return the section `search`, with its known-good points."""
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
