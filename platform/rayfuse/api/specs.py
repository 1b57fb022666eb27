"""Specs as the API takes them: the path of a YAML file, a dict, or a spec object."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rayfuse.errors import SpecError
from rayfuse.spec.base import Spec

AnySpec = TypeVar("AnySpec", bound=Spec)

SpecSource = Spec | Mapping[str, Any] | str | Path
"""A spec, its values as a dict, or the path or URL of its YAML file."""


def as_spec(
    source: Any, kind: type[AnySpec], overrides: Mapping[str, Any], parameters: Sequence[str] = ()
) -> AnySpec:
    """Return a spec of `kind` with overrides by path, such as `{"train.epochs": 3}`.

    Args:
        source: The path or URL of a YAML file, a dict, or a spec.
        kind: Class of the spec.
        overrides: Values by path.
        parameters: Names of the caller's own parameters, to suggest them for a misspelled one.

    Raises SpecError with a line for every problem.
    """
    for name in overrides.keys() - kind.model_fields.keys():
        if near := difflib.get_close_matches(name, parameters, n=1):
            raise SpecError(f"{name}: neither a parameter nor a key of the spec; did you mean {near[0]}?")
    if isinstance(source, (str, Path)):
        return kind.from_yaml(source, **overrides)
    if isinstance(source, Mapping):
        return kind(**source).override(**overrides)
    if isinstance(source, kind):
        return source.override(**overrides)
    name = kind.__name__
    raise SpecError(f"expected the path of a YAML file, a dict or a {name}, not {type(source).__name__}")
