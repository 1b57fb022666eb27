"""Specs as the API takes them: the path of a YAML file, a dict, or a spec object."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rayfuse.errors import SpecError
from rayfuse.spec.base import Spec
from rayfuse.spec.custom_parts import check_custom_parts
from rayfuse.spec.job import Job

AnySpec = TypeVar("AnySpec", bound=Spec)

SpecSource = Spec | Mapping[str, Any] | str | Path
"""A spec, its values as a dict, or the path or URL of its YAML file."""


SPEC_SUFFIXES = (".yaml", ".yml")
"""Suffixes of spec files, which are no data."""


def check_is_spec(path: str) -> None:
    """Raise SpecError if a path names data instead of a job."""
    from rayfuse.data.files import data_suffix
    from rayfuse.data.readers import READERS

    if not path.lower().endswith(SPEC_SUFFIXES) and (data_suffix(path) in READERS or Path(path).is_dir()):
        raise SpecError(
            f"{path}: data, not a job; name the column to predict with --target COLUMN, or write a job with `rayfuse init`"
        )


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
        if "." not in name and (near := difflib.get_close_matches(name, parameters, n=1)):
            raise SpecError(f"{name}: neither a parameter nor a key of the spec; did you mean {near[0]}?")
    name = kind.__name__
    if isinstance(source, (str, Path)):
        return kind.from_yaml(source, **overrides)
    if isinstance(source, Mapping):
        if not all(isinstance(key, str) for key in source):
            raise SpecError(f"{name}: a key of the dict is not a text; write the keys of the spec")
        return kind(**source).override(**overrides)
    if isinstance(source, kind):
        return source.override(**overrides)
    raise SpecError(f"expected the path of a YAML file, a dict or a {name}, not {type(source).__name__}")


def as_local_job(source: Any, overrides: Mapping[str, Any], parameters: Sequence[str] = ()) -> Job:
    """Return a job that runs here, as `as_spec` does, after a check that its custom parts can be imported.

    Raises SpecError with a line for every problem, or for the first custom part that is not found or not of its family.
    """
    job = as_spec(source, Job, overrides, parameters)
    check_custom_parts(job, str(source) if isinstance(source, (str, Path)) else "Job")
    return job
