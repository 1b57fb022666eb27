"""Say what is wrong with a spec as `path: what, and what would be right`."""

import difflib
import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, Tag, ValidationError

from rayfuse.spec.custom import Custom

PLANNED_TYPES = {
    "generation",
    "hyperband", "median", "pbt", "pb2",
}  # fmt: skip
"""Types that the design names and that do not exist yet."""

_PYDANTIC_WORDS = re.compile(
    r"^(Input|String|List|Tuple|Dictionary|Value) (?=should)"
    r"| after validation, not \d+$"
    r"|, (unable to parse|got a number with) .*"
)
"""What its messages say beyond the rule."""

_VALUE_UNSEEN = ("not_built", "credentials", "invalid_key")
"""Problems whose message must not repeat the value."""


def describe(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One line per problem, in the order of the spec's fields, repeated ones once."""
    lines = (_line(dict(problem), kind) for problem in error.errors(include_url=False))
    return list(dict.fromkeys(lines))


def _line(problem: dict[str, Any], kind: type[BaseModel]) -> str:
    path, owner, node = _walk(problem["loc"], kind)
    context = problem.get("ctx", {})
    if "path" in context:
        path = [*path, context["path"]]
    return f"{'.'.join(path) or '(top level)'}: {_message(problem, owner, node)}"


def _message(problem: dict[str, Any], owner: Any, node: Any) -> str:
    kind, context, value = problem["type"], problem.get("ctx", {}), problem.get("input")
    if kind == "extra_forbidden":
        return _unknown_key(str(problem["loc"][-1]), owner)
    if kind == "missing":
        return "missing"
    if kind == "union_tag_not_found":
        return f"`type` is missing; one of: {', '.join(_tags(node))}"
    if kind == "union_tag_invalid":
        return _unknown_type(str(context.get("tag")), _tags(node))
    if kind == "literal_error":
        return f"{_show(value)} is not one of: {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"{_show(value)} does not match {context['pattern']}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        message = "a mapping belongs here"
    elif kind == "invalid_key":
        message = "a key must be text; put it in quotes"
    else:
        message = _PYDANTIC_WORDS.sub("", problem["msg"])
    if "path" in context or kind in _VALUE_UNSEEN or _holds_secret(node):
        return message
    return f"{_show(value)} is {message}" if message.startswith("not a") else f"{message}, not {_show(value)}"


def _unknown_key(key: str, owner: Any) -> str:
    known = list(owner.model_fields) if isinstance(owner, type) and issubclass(owner, BaseModel) else []
    return f"unknown key; {nearest(key, known)}"


def _unknown_type(given: str, known: list[str]) -> str:
    if given in PLANNED_TYPES:
        return f"type `{given}` is not built yet; one of: {', '.join(known)}"
    return f"unknown type `{given}`; {nearest(given, known)}"


def nearest(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"one of: {', '.join(known)}"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _walk(loc: tuple[int | str, ...], kind: type[BaseModel]) -> tuple[list[str], Any, Any]:
    """The path as the user wrote it, the type that owns its last key, and the type found there.

    A pydantic location also names the chosen member of every union on the way, and `[key]`.
    """
    path: list[str] = []
    owner: Any = None
    node: Any = kind
    for key in loc:
        member = _member(node, key)
        if member is not None:
            node = member
        elif key != "[key]":
            path.append(str(key))
            owner, node = node, _step(node, key)
    return path, owner, node


def _plain(node: Any) -> Any:
    while get_origin(node) is Annotated:
        node = get_args(node)[0]
    return node


def _holds_secret(node: Any) -> bool:
    """Whether a type is or contains a secret, so that a wrong value may be one."""
    plain = _plain(node)
    if isinstance(plain, type) and issubclass(plain, BaseModel):
        return any(_holds_secret(field.annotation) for field in plain.model_fields.values())
    return plain is SecretStr or any(_holds_secret(inner) for inner in get_args(plain))


def _is_union(node: Any) -> bool:
    return get_origin(_plain(node)) in (Union, UnionType)


def _members(node: Any) -> Iterator[type[BaseModel]]:
    node = _plain(node)
    candidates = get_args(node) if _is_union(node) else (node,)
    for candidate in map(_plain, candidates):
        if _is_union(candidate):
            yield from _members(candidate)
        elif isinstance(candidate, type) and issubclass(candidate, BaseModel):
            yield candidate


def _tag(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("type")
    if field is None or get_origin(field.annotation) is not Literal:
        return None
    return str(get_args(field.annotation)[0])


def _tags(node: Any) -> list[str]:
    return [tag for model in _members(node) if (tag := _tag(model))] if _is_union(node) else []


def _member(node: Any, key: int | str) -> Any:
    """The member of a union that a location names by its `type`, or as `mapping`, `url` or `custom`."""
    if not _is_union(node):
        return None
    if key == "url":
        return str
    if key == "builtin":
        return node
    if key == "custom":
        return next((model for model in _members(node) if issubclass(model, Custom)), None)
    found = next((model for model in _members(node) if key in (_tag(model), "mapping")), None)
    return found or _tagged(node, key)


def _tagged(node: Any, key: int | str) -> Any:
    """The member of a union, or of one within it, whose tag is `key`, where it is no block."""
    for candidate in get_args(_plain(node)):
        if any(isinstance(mark, Tag) and mark.tag == key for mark in getattr(candidate, "__metadata__", ())):
            return candidate
        if _is_union(candidate) and (found := _tagged(candidate, key)):
            return found
    return None


def _step(node: Any, key: int | str) -> Any:
    """The type found below `key`, or None where the type has no such key."""
    plain = _plain(node)
    if get_origin(plain) in (dict, list, tuple):
        return get_args(plain)[-1]
    if isinstance(plain, type) and issubclass(plain, BaseModel) and isinstance(key, str):
        field = plain.model_fields.get(key)
        return field.annotation if field else None
    return None
