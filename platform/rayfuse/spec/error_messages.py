"""Error messages for invalid specs, as `path: value, rule, remedy`."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, Tag, ValidationError
from pydantic_core.core_schema import ErrorType

from rayfuse.formatting import printable, truncated_repr
from rayfuse.spec.family import PartOf
from rayfuse.spec.renamed_keys import EQUIVALENT_KEYS, RENAMED_KEYS, RENAMED_TYPES

PLANNED_TYPES = {
    "hyperband", "median", "pbt", "pb2",
}  # fmt: skip
"""Types of the design that are not implemented yet."""

_REWORDINGS = (
    (r"^(Input|String|List|Tuple|Dictionary|Value) should", "must"),
    (r" after validation, not \d+$|, (unable to|got a number with) .*", ""),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r"a valid integer", "an integer"),
    (r"a valid boolean", "true or false"),
    (r"a valid (?=\w)", "a "),
)
"""Patterns in pydantic's messages, and their replacements."""

_PYDANTIC_ERROR_TYPES = frozenset(get_args(ErrorType))
"""Types of pydantic's own errors; all others are raised by validators of Rayfuse, whose messages are complete."""

TOP_LEVEL = "(top level)"
"""Path of an error that is about a spec as a whole."""

_MAX_REPORTED = 20
_MAX_PATH = 120
_MAX_NAME_SHOWN = 60
_MAX_MESSAGE = 600
_MAX_KEY_TO_COMPARE = 100
"""Characters above which a name is not compared with the known ones, which would take long."""
_MAX_SUGGESTIONS = 3
_MAX_SUGGESTION_DEPTH = 3

_REDACTED_ERROR_TYPES = ("not_built", "credentials", "invalid_key")
"""Types of errors whose message must not contain the value."""


def format_errors(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """Return a line `path: message` per problem, in the order of the spec's fields."""
    return [f"{path}: {message}" for path, message in locate_errors(error, kind)]


def locate_errors(error: ValidationError, kind: type[BaseModel]) -> list[tuple[str, str]]:
    """Return (path, message) per problem, in the order of the spec's fields, without duplicates."""
    try:
        problems = error.errors(include_url=False)
    except UnicodeEncodeError as surrogate:  # in a text of a spec that is built in Python
        return [(TOP_LEVEL, not_unicode(surrogate))]
    found = [_locate(dict(problem), kind) for problem in problems[:_MAX_REPORTED]]
    more = (
        [] if len(problems) <= _MAX_REPORTED else [(TOP_LEVEL, f"… and {len(problems) - _MAX_REPORTED} more")]
    )
    return [
        (printable(path, _MAX_PATH), printable(message, _MAX_MESSAGE))
        for path, message in dict.fromkeys(found)
    ] + more


def not_unicode(error: UnicodeEncodeError) -> str:
    """Return the message for a text with a lone surrogate."""
    return f"the character {printable(error.object[error.start])} is not allowed; remove it"


def reword(problem: Mapping[str, Any]) -> str:
    """Return the message of a pydantic error in the words of the other messages, as in `must be at least 1`."""
    message: str = problem["msg"]
    for pattern, replacement in _REWORDINGS:
        message = re.sub(pattern, replacement, message)
    return message


def _locate(problem: dict[str, Any], kind: type[BaseModel]) -> tuple[str, str]:
    path, owner, node = _walk(problem["loc"], kind)
    context = problem.get("ctx", {})
    if "path" in context:
        path = [*path, context["path"]]
    if problem["type"] == "extra_forbidden":
        message = _unknown_key(path, owner, kind)
    else:
        message = _message(problem, node)
    return ".".join(path) or TOP_LEVEL, message


def _message(problem: dict[str, Any], node: Any) -> str:
    kind, context, value = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found" and isinstance(value, dict):
        return f"`type` is missing; one of: {', '.join(_tags(node))}"
    if kind == "union_tag_invalid":
        return _unknown_type(str(context.get("tag")), _tags(node))
    if kind == "literal_error":
        return f"{_yaml_repr(value)} is not one of: {_format_literals(context['expected'])}"
    hide_value = "path" in context or kind in _REDACTED_ERROR_TYPES or _holds_secret(node)
    if kind in ("model_type", "model_attributes_type", "dict_type", "union_tag_not_found"):
        return _not_a_mapping(value, node, hide_value)
    if kind == "invalid_key":
        return "a key must be text; put it in quotes"
    message = reword(problem)
    if hide_value:
        return message
    if kind in _PYDANTIC_ERROR_TYPES:
        return f"{message}, not {_yaml_repr(value)}"
    return f"{_yaml_repr(value)} is {message}" if message.startswith("not ") else message


def _not_a_mapping(value: Any, node: Any, hide_value: bool) -> str:
    if hide_value:
        return "must be a mapping"
    remedy = f"; write {{type: {value}}}" if isinstance(value, str) and value in _tags(node) else ""
    return f"must be a mapping, not {_yaml_repr(value)}{remedy}"


def _yaml_repr(value: Any) -> str:
    """Return a value as it is written in YAML, cut where it is long."""
    return json.dumps(value) if value is None or isinstance(value, bool) else truncated_repr(value)


def _format_literals(expected: str) -> str:
    """Reformat pydantic's list of the values of a Literal, `'a', 'b' or 'c'`."""
    return expected.replace("'", "").replace(" or ", ", ")


def _unknown_key(path: list[str], owner: Any, kind: type[BaseModel]) -> str:
    key = path[-1]
    models = [member for member in _members(owner) if not isinstance(member, PartOf)]
    known = [name for model in models for name in model.model_fields]
    name = EQUIVALENT_KEYS.get(key, key)
    renamed = _renamed(key, known, RENAMED_KEYS) or (name if name in known else None)
    elsewhere = [] if _closest(key, known) else _paths_of(name, kind)
    if ".".join(path) in elsewhere:  # a key of another `type`
        elsewhere = []
    if renamed or elsewhere:
        return f"unknown key; did you mean {renamed or ', '.join(elsewhere)}?"
    return f"unknown key; {suggest_nearest(key, known)}"


def _paths_of(key: str, kind: type[BaseModel]) -> list[str]:
    """Return the shortest paths of a key in the sections of a spec; none if there are too many to suggest."""
    sections: list[tuple[str, Any]] = [("", kind)]
    for _ in range(_MAX_SUGGESTION_DEPTH):
        fields = [
            (f"{path}{name}", _part_of(field.metadata) or field.annotation)
            for path, model in sections
            for name, field in model.model_fields.items()
        ]
        found = dict.fromkeys(path for path, _ in fields if path.rpartition(".")[2] == key)
        if found:
            return list(found) if len(found) <= _MAX_SUGGESTIONS else []
        sections = [(f"{path}.", model) for path, node in fields for model in _models_in(node)]
    return []


def _models_in(node: Any) -> Iterator[type[BaseModel]]:
    for member in _members(node):
        yield from member.family.values() if isinstance(member, PartOf) else [member]


def _unknown_type(given: str, known: list[str]) -> str:
    given = printable(given, _MAX_NAME_SHOWN)
    if given in PLANNED_TYPES:
        return f"type `{given}` is not implemented yet; one of: {', '.join(known)}"
    if not known:
        return f"unknown type `{given}`; write the import path of a class, MODULE:CLASS"
    renamed = _renamed(given, known, RENAMED_TYPES)
    return (
        f"unknown type `{given}`; {f'did you mean {renamed}?' if renamed else suggest_nearest(given, known)}"
    )


def _renamed(
    given: str, known: list[str], tables: Mapping[str, Mapping[str, str | tuple[str, ...]]]
) -> str | None:
    """Return today's name of an earlier one, if it is among the known names."""
    for table in tables.values():
        new = table.get(given, ())
        for name in (new,) if isinstance(new, str) else new:
            if name in known:
                return name
    return None


def suggest_nearest(given: str, known: list[str]) -> str:
    """Return `did you mean …?` with the known name most similar to a given one, else a list of all."""
    close = _closest(given, known)
    return f"did you mean {close}?" if close else f"one of: {', '.join(known)}"


def _closest(given: str, known: list[str]) -> str | None:
    """Return the only known name that begins with a given one, else the most similar one."""
    if len(given) > _MAX_KEY_TO_COMPARE:
        return None
    continued = [name for name in known if name.startswith(given)] if len(given) > 2 else []
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return continued[0] if len(continued) == 1 else close[0] if close else None


def _walk(loc: tuple[int | str, ...], kind: type[BaseModel]) -> tuple[list[str], Any, Any]:
    """Return the path as the user wrote it, the type that owns its last key, and the type found there.

    A pydantic location also names the selected member of every union on the way, and `[key]`.
    """
    path: list[str] = []
    owner: Any = None
    node: Any = kind
    for key in loc:
        member = _member(node, key)
        if member is not None:
            node = member
        elif key != "[key]" and not (isinstance(key, str) and _is_labeled_union(node)):
            path.append(str(key))
            owner, node = node, _child_type(node, key)
    return path, owner, node


def _unwrap(node: Any) -> Any:
    """Return a type without its annotations; for a part of a family, its PartOf."""
    while get_origin(node) is Annotated:
        node, *metadata = get_args(node)
        node = _part_of(metadata) or node
    return node


def _part_of(metadata: Any) -> PartOf | None:
    return next((mark for mark in metadata if isinstance(mark, PartOf)), None)


def _holds_secret(node: Any) -> bool:
    """Return whether a type is or contains a secret, so that an invalid value may be one."""
    plain = _unwrap(node)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return any(_holds_secret(field.annotation) for field in plain.model_fields.values())
    return plain is SecretStr or any(_holds_secret(inner) for inner in get_args(plain))


def _is_union(node: Any) -> bool:
    return get_origin(_unwrap(node)) in (Union, UnionType)


def _is_labeled_union(node: Any) -> bool:
    """Return whether a location names the member of a union, as it does if there are two or more, apart from null."""
    return _is_union(node) and sum(member is not type(None) for member in get_args(_unwrap(node))) > 1


def _members(node: Any) -> Iterator[Any]:
    """Yield the members of a union and of those within it: spec models and PartOfs."""
    node = _unwrap(node)
    candidates = get_args(node) if _is_union(node) else (node,)
    for candidate in map(_unwrap, candidates):
        if _is_union(candidate):
            yield from _members(candidate)
        elif isinstance(candidate, PartOf) or (
            isinstance(candidate, type) and issubclass(candidate, BaseModel)
        ):
            yield candidate


def _tag(model: Any) -> str | None:
    field = None if isinstance(model, PartOf) else model.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def _tags(node: Any) -> list[str]:
    if isinstance(part := _unwrap(node), PartOf):
        return part.types
    found: list[str] = []
    for model in _members(node) if _is_union(node) else ():
        found += model.types if isinstance(model, PartOf) else filter(None, [_tag(model)])
    return found


def _member(node: Any, key: int | str) -> Any:
    """Return the member of a union that a location names by its `type`, or as `mapping`, `url` or `custom`."""
    if isinstance(part := _unwrap(node), PartOf):
        return part.family.custom if key == "custom" else part.family.get(str(key))
    if not _is_union(node):
        return None
    if key == "url":
        return str
    for model in _members(node):
        if isinstance(model, PartOf):
            if (found := _member(model, key)) is not None:
                return found
        elif key in (_tag(model), "mapping"):
            return model
    return _tagged(node, key)


def _tagged(node: Any, key: int | str) -> Any:
    """Return the member of a union, or of one within it, with the tag `key`, if it is not a spec model."""
    for candidate in get_args(_unwrap(node)):
        if any(isinstance(mark, Tag) and mark.tag == key for mark in getattr(candidate, "__metadata__", ())):
            return candidate
        if _is_union(candidate) and (found := _tagged(candidate, key)):
            return found
    return None


def _child_type(node: Any, key: int | str) -> Any:
    """Return the type found below `key`, or None if the type has no such key."""
    plain = _unwrap(node)
    if get_origin(plain) in (dict, list, tuple):
        return get_args(plain)[-1]
    if isinstance(plain, type) and issubclass(plain, BaseModel) and isinstance(key, str):
        field = plain.model_fields.get(key)
        return (_part_of(field.metadata) or field.annotation) if field else None
    return None
