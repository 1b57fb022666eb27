"""Parameters of an MLflow run: the options of a spec that are in use, under names that MLflow accepts."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rayfuse.spec.job import Job
from rayfuse.spec.sweep import Sweep

_MAX_NAME_LENGTH = 250
_MAX_VALUE_LENGTH = 500
_MAX_PARAMS_PER_MAPPING = 100
"""A mapping of more numbers or texts, such as the weights of many classes, is one value."""
_FORBIDDEN_IN_NAMES = re.compile(r"[^/\w.\- ]")
_NAMED_ELSEWHERE = ("kind", "name")
_SCHEMA = ".json_schema"
_ONLY_AS_SET = ("compute", "output")
"""Sections whose defaults do not change the model."""


def run_params(spec: Job | Sweep) -> dict[str, str]:
    """Return the options of a spec that are in use as {"a.b.c": text}: those that it sets, and defaults that are not off.

    Null, false, 0 and empty defaults are off; `compute` and `output` have only what is set. Values of more than 500
    characters, such as vocabularies, are left out: the run has the complete spec as `spec.json`.
    """
    given = dict(_flatten(spec.model_dump(mode="json", exclude_unset=True)))
    in_use = {
        path: value
        for path, value in _flatten(spec.model_dump(mode="json"))
        if path in given or (value and path.partition(".")[0] not in _ONLY_AS_SET)
    }
    texts = {
        path: _to_text(value)
        for path, value in in_use.items()
        if path not in _NAMED_ELSEWHERE and value not in ([], {})
    }
    names = mlflow_names(texts)
    return {names[path]: text for path, text in texts.items() if len(text) <= _MAX_VALUE_LENGTH}


def mlflow_names(names: Iterable[str]) -> dict[str, str]:
    """Return a name that MLflow accepts for each name of a parameter or metric.

    Characters that MLflow does not allow become `_`. A name that is longer than MLflow allows, or that another one has
    already become, ends in a hash, so that no value is lost.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        allowed = _allowed_name(name)
        if len(allowed) > _MAX_NAME_LENGTH or allowed in taken:
            digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()
            allowed = f"{allowed[: _MAX_NAME_LENGTH - len(digest) - 1]}-{digest}"
        taken.add(allowed)
        found[name] = allowed
    return found


def _flatten(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a nested mapping by path; lists, long mappings and schemas are one value, null is left out."""
    if isinstance(content, Mapping) and not _is_long(content) and not path.endswith(_SCHEMA):
        for key, value in content.items():
            yield from _flatten(value, f"{path}.{key}" if path else str(key))
    elif content is not None:
        yield path, content


def _is_long(content: Mapping[str, Any]) -> bool:
    return len(content) > _MAX_PARAMS_PER_MAPPING and not any(
        isinstance(value, (Mapping, list)) for value in content.values()
    )


def _to_text(value: Any) -> str:
    is_json = isinstance(value, (Mapping, list, bool))
    return json.dumps(value, ensure_ascii=False) if is_json else str(value)


def _allowed_name(name: str) -> str:
    """Return a name that MLflow accepts, which treats names as relative paths."""
    parts = (part for part in _FORBIDDEN_IN_NAMES.sub("_", name).split("/") if part)
    return "/".join("_" * len(part) if part in (".", "..") else part for part in parts) or "_"
