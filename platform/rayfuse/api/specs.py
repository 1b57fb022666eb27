"""Specs as the API takes them: the path of a YAML file, a dict, or a spec object."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from rayfuse.errors import SpecError
from rayfuse.spec.base import Spec

AnySpec = TypeVar("AnySpec", bound=Spec)

SpecSource = Spec | Mapping[str, Any] | str | Path
"""A spec, its values as a dict, or the path or URL of its YAML file."""


def as_spec(source: Any, kind: type[AnySpec], overrides: Mapping[str, Any]) -> AnySpec:
    """Return a spec of `kind` with overrides by path, such as `{"train.epochs": 3}`.

    source: the path or URL of a YAML file, a dict, or a spec. Raises SpecError with a line for every problem.
    """
    if isinstance(source, (str, Path)):
        return kind.from_yaml(source, **overrides)
    if isinstance(source, Mapping):
        return kind(**source).override(**overrides)
    if isinstance(source, kind):
        return source.override(**overrides)
    name = kind.__name__
    raise SpecError(f"expected the path of a YAML file, a dict or a {name}, not {type(source).__name__}")
