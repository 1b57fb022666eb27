"""The JSON Schemas of all specs and parts as one set of definitions, and their types in words."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import rayfuse.spec
from rayfuse.spec.base import SpecModel
from rayfuse.spec.family import Family, load_families
from rayfuse.spec.kinds import KINDS, spec_class
from rayfuse.spec.schema import json_schema

Schema = dict[str, Any]

_COMPARISONS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_NAMES = {"string": "text", "object": "mapping", "array": "list", "null": "null"}


@cache
def definitions() -> dict[str, Schema]:
    """Return every mapping that a spec may contain, by the name of its class."""
    models = [
        *map(spec_class, KINDS),
        *(model for family in families() for model in variants(family).values()),
    ]
    found: dict[str, Schema] = {}
    for model in models:
        schema = json_schema(model)
        found |= schema.get("$defs", {})
        found[model.__name__] = {name: value for name, value in schema.items() if name != "$defs"}
    return found


@cache
def families() -> tuple[Family[Any], ...]:
    """Return the families of parts."""
    return tuple(family for found in load_families().values() for family in found)


def variants(family: Family[Any]) -> dict[str, type[SpecModel]]:
    """Return the spec models of a family by `type`, the one of custom parts last."""
    return {**family, "MODULE:CLASS": family.custom}


def family_of(definition: str) -> Family[Any] | None:
    """Return the family whose union a definition is; None if it is a mapping."""
    name = definition.partition("Without")[0]
    return next((f for f in families() if f.name.title().replace(" ", "") == name), None)


def all_keys() -> Iterator[tuple[str, str]]:
    """Yield (definition, key) for every key of every spec."""
    for name, schema in definitions().items():
        yield from ((name, key) for key in schema.get("properties", ()))


def references(schema: Any) -> Iterator[str]:
    """Yield the names of the definitions that a schema refers to, in order."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        for name, value in schema.items():
            if name != "discriminator":
                yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def tag(definition: str) -> str | None:
    """Return the value of `type` that selects a definition; None if it has none."""
    return definitions()[definition].get("properties", {}).get("type", {}).get("const")


@cache
def _classes() -> dict[str, type[SpecModel]]:
    for module in pkgutil.walk_packages(rayfuse.spec.__path__, "rayfuse.spec."):
        importlib.import_module(module.name)
    found, pending = {}, [SpecModel]
    while pending:
        cls = pending.pop()
        found[cls.__name__] = cls
        pending += cls.__subclasses__()
    return found


def default_of(definition: str, key: str) -> str | None:
    """Return the default of a key as YAML; None if it is required, or if it is a mapping with defaults of its keys."""
    schema = definitions()[definition]
    if key in schema.get("required", ()):
        return None
    if "default" in schema["properties"][key]:
        return _in_yaml(schema["properties"][key]["default"])
    field = _classes()[definition].model_fields[key]
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is PydanticUndefined:
        return None
    if isinstance(default, BaseModel):
        shown = {
            k: v
            for k, v in default.model_dump(mode="json").items()
            if k == "type" or k in default.model_fields_set
        }
        return _in_yaml(shown) if shown else None
    return _in_yaml(default)


def _in_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def without_null(schema: Schema) -> Schema:
    """Return the schema of an optional key without null, which is the same as leaving the key out."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    if "default" not in schema or schema["default"] is not None or not options:
        return schema
    return options[0] if len(options) == 1 else {"anyOf": options}


def type_in_words(schema: Schema, link: Callable[[str], str]) -> str:
    """Return the type of a value in Markdown. link: returns the link to a definition by its name."""
    if "$ref" in schema:
        return link(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            words = dict.fromkeys(type_in_words(option, link) for option in schema[union])
            return " or ".join(words) + _examples(schema)
    if schema.get("type") == "array":
        return _list_in_words(schema, link)
    if schema.get("type") == "object":
        return _mapping_in_words(schema, link)
    if "type" not in schema:
        return "any value"
    return _NAMES.get(schema["type"], str(schema["type"])) + _range(schema) + _examples(schema)


def _list_in_words(schema: Schema, link: Callable[[str], str]) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}: " + ", ".join(
            type_in_words(item, link) for item in schema["prefixItems"]
        )
    item = schema.get("items")
    return f"list of {type_in_words(item, link)}" if item else "list"


def _mapping_in_words(schema: Schema, link: Callable[[str], str]) -> str:
    values = [*schema.get("patternProperties", {}).values()]
    if isinstance(schema.get("additionalProperties"), dict):
        values.append(schema["additionalProperties"])
    return f"mapping from names to {type_in_words(values[0], link)}" if values else "mapping"


def _range(schema: Schema) -> str:
    found = [f"{sign} {schema[name]:g}" for name, sign in _COMPARISONS.items() if name in schema]
    return " " + ", ".join(found) if found else ""


def _examples(schema: Schema) -> str:
    return f", such as `{schema['examples'][0]}`" if "examples" in schema else ""
