"""The grammar of a spec as JSON Schema, for editors. Everything in it comes from the fields of config/.

Editors read YAML 1.2, in which `1_000` and `off` are text; so the schema accepts such text for numbers and switches.
"""

from __future__ import annotations

from typing import Any

from saebench.config import FIXED_TRAIN_FIELDS, SAE_CONFIGS, Config, TrainConfig
from saebench.spec.grammar import SweepSpec, is_list_field
from saebench.spec.rules import LARGEST_SEED, NAME
from saebench.spec.strata import WIDTH

Schema = dict[str, Any]
NUMBER = r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?$"
SWITCH = ["on", "off", "yes", "no", "On", "Off", "Yes", "No", "ON", "OFF", "YES", "NO"]


def schema() -> Schema:
    """Return the schema of a whole spec file."""
    definitions: Schema = {}
    properties: Schema = {}
    for name, field in SweepSpec.model_fields.items():
        if name in ("sae", "train", "seeds"):
            continue
        properties[name] = {**_field(SweepSpec, name, definitions), "description": field.description}
    properties["name"]["pattern"] = f"^{NAME.pattern}$"
    properties["sae"] = {
        "description": SweepSpec.model_fields["sae"].description,
        "type": "array",
        "minItems": 1,
        "items": {"oneOf": [_arm(name, definitions) for name in SAE_CONFIGS]},
    }
    properties["train"] = {**_searchable(TrainConfig, definitions), "required": ["samples"]}
    properties["seeds"] = {
        "description": SweepSpec.model_fields["seeds"].description,
        "type": "array",
        "minItems": 1,
        "uniqueItems": True,
        "items": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "saebench sweep",
        "type": "object",
        "additionalProperties": False,
        "required": [name for name, field in SweepSpec.model_fields.items() if field.is_required()],
        "properties": {name: properties[name] for name in SweepSpec.model_fields},
        "$defs": definitions,
    }


def _arm(name: str, definitions: Schema) -> Schema:
    model = SAE_CONFIGS[name]
    found = _searchable(model, definitions)
    found["properties"]["type"] = {"const": name, "description": " ".join((model.__doc__ or "").split())}
    choices = [WIDTH, *([model.sparsity] if len(model.sparsity) > 1 else [])]
    required = [field for field in model.model_fields if model.model_fields[field].is_required()]
    return {
        "title": name,
        **found,
        "required": ["type", *required],
        "allOf": [{"oneOf": [{"required": [one]} for one in given]} for given in choices],
    }


def _searchable(model: type[Config], definitions: Schema) -> Schema:
    """Return the schema of a mapping whose fields accept a value, a list of choices or a range."""
    properties = {}
    for name, field in model.model_fields.items():
        one = _field(model, name, definitions)
        forms = list(one.get("anyOf", [one]))
        if name not in FIXED_TRAIN_FIELDS:
            forms.append({"type": "array", "minItems": 1, "uniqueItems": True, "items": one})
            if not is_list_field(name) and _is_number(one):
                forms.append(_range(one))
        properties[name] = {"description": field.description, "anyOf": forms}
        if not field.is_required() and field.default is not None:
            properties[name]["default"] = field.default
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _range(one: Schema) -> Schema:
    bound = {"anyOf": [form for form in one.get("anyOf", [one]) if form.get("type") != "null"]}
    step = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "pattern": NUMBER}]}
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["low", "high"],
        "properties": {
            "low": {"description": "Lowest value, included.", **bound},
            "high": {"description": "Highest value, included.", **bound},
            "log": {"description": "Draw uniformly in the logarithm.", **_relaxed({"type": "boolean"})},
            "step": {"description": "Only low + i * step.", **step},
        },
    }


def _is_number(one: Schema) -> bool:
    return any(form.get("type") in ("number", "integer") for form in one.get("anyOf", [one]))


def _field(model: type[Config], name: str, definitions: Schema) -> Schema:
    """Return pydantic's schema of one field, without its title and description."""
    whole = _schema_of(model)
    for key, definition in whole.get("$defs", {}).items():
        definitions[key] = _relaxed(definition)
    found: Schema = _relaxed(whole["properties"][name])
    return {key: value for key, value in found.items() if key not in ("title", "description", "default")}


def _schema_of(model: type[Config]) -> Schema:
    if model is not SweepSpec:
        return model.model_json_schema()
    whole: Schema = {"properties": {}, "$defs": {}}
    for name, field in SweepSpec.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Config):
            section = inner.model_json_schema()
            whole["$defs"].update(section.pop("$defs", {}))
            whole["$defs"][inner.__name__] = section
            whole["properties"][name] = {"$ref": f"#/$defs/{inner.__name__}"}
    words = SweepSpec.model_json_schema()["properties"]
    return {
        **whole,
        "properties": {**{n: words[n] for n in ("name", "description", "replicate")}, **whole["properties"]},
    }


def _relaxed(value: Any) -> Any:
    """Return the schema with numbers and switches as YAML 1.2 may read them."""
    if isinstance(value, list):
        return [_relaxed(item) for item in value]
    if not isinstance(value, dict):
        return value
    found = {key: _relaxed(item) for key, item in value.items() if key != "title"}
    kind = found.get("type")
    if kind in ("number", "integer", "boolean"):
        kept = {key: found.pop(key) for key in list(found) if key not in ("description", "default")}
        text = {"enum": SWITCH} if kind == "boolean" else {"type": "string", "pattern": NUMBER}
        found["anyOf"] = [kept, text]
    elif "anyOf" in found:
        found["anyOf"] = [form for item in found["anyOf"] for form in item.get("anyOf", [item])]
    return found
