"""Loading of specs from YAML, with `${VAR}`, `--set`, relative paths, and errors with their location."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from rayfuse.errors import SpecError
from rayfuse.formatting import printable, truncated_repr
from rayfuse.spec.base import Spec, SpecModel
from rayfuse.spec.error_messages import format_errors, not_unicode
from rayfuse.spec.kinds import KINDS, is_kind
from rayfuse.spec.paths import is_below, set_at
from rayfuse.spec.spec_file import place, read_spec_file
from rayfuse.spec.variables import escape_dollars, substitute
from rayfuse.spec.yaml_io import MAX_DEPTH, YamlError, check_values, dump_yaml, load_yaml

AnySpec = TypeVar("AnySpec", bound=SpecModel)
AnyNewSpec = TypeVar("AnyNewSpec", bound=Spec)


def load_spec(
    source: str | Path,
    kind: type[AnySpec],
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> AnySpec:
    """Load the spec file `source` (a path or fsspec URL) as a spec of `kind`.

    `overrides` are values by path, as in `{"train.epochs": 3}`. Raises SpecError with a line for every error, as
    `file: path: value, rule, remedy`.
    """
    where = str(source)
    content = substitute(read_spec(source, kind, overrides), environment, where)
    return validate_spec(content, kind, where, folder_of(where))


def read_spec(
    source: str | Path, kind: type[SpecModel], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read the content of a spec file, with the overrides applied and every `${VAR}` unchanged.

    Raises SpecError if it is not a YAML mapping of this kind; keys and values are not validated.
    """
    where = str(source)
    content = _parse(where)
    apply_overrides(content, overrides or {}, where)
    _check_kind(content, kind, place(where))
    return content


def folder_of(where: str) -> str:
    """Return the folder or URL that relative paths in the spec file at `where` are resolved against."""
    return where.rsplit("/", 1)[0] if "://" in where else str(Path(where).resolve().parent)


def validate_spec(content: Any, kind: type[AnySpec], where: str, base: str | None = None) -> AnySpec:
    """Validate a mapping as a spec of `kind`; relative paths are resolved against the folder or URL `base`.

    Raises SpecError with a line for every error.
    """
    return _validate(lambda: kind.model_validate(content, context={"base": base}), kind, place(where))


def _validate(validate: Callable[[], AnySpec], kind: type[AnySpec], where: str) -> AnySpec:
    """Call pydantic. Raises SpecError with a line for every error."""
    try:
        return validate()
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in format_errors(error, kind))) from None
    except RecursionError:  # in Python; a file has a limit
        raise SpecError(f"{where}: nested too deeply, or inside itself; write a flatter structure") from None
    except UnicodeEncodeError as error:  # in Python; a file cannot hold them
        raise SpecError(f"{where}: {not_unicode(error)}") from None


def read_kind(source: str | Path) -> str:
    """Read the `kind:` of a spec file. Raises SpecError if it is missing or unknown."""
    content = _parse(str(source))
    kind = content.get("kind")
    if not is_kind(kind):
        raise SpecError(
            f"{place(str(source))}: kind: {truncated_repr(kind)} is not a kind of spec; one of: {', '.join(KINDS)}"
        )
    return str(kind)


def _parse(source: str) -> dict[str, Any]:
    text, where = read_spec_file(source), place(source)
    try:
        content = load_yaml(text)
    except YamlError as error:
        line = "" if error.line is None else f"{error.line}:"
        raise SpecError(f"{where}:{line} {error}") from None
    if content is None:
        raise SpecError(f"{where}: the file is empty; `rayfuse schema` lists the kinds of spec")
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "a single value"
        raise SpecError(f"{where}: not a spec: expected a YAML mapping such as `kind: job`, found {found}")
    return content


def _check_kind(content: dict[str, Any], kind: type[SpecModel], where: str) -> None:
    wanted = _kind_of(kind)
    given = content.get("kind")
    if given is None:
        raise SpecError(f"{where}: kind: missing; write `kind: {wanted}`")
    if given != wanted:
        found = (
            f"the file is `{given}`" if is_kind(given) else f"{truncated_repr(given)} is not a kind of spec"
        )
        raise SpecError(f"{where}: kind: this command requires `{wanted}`, and {found}")


def _kind_of(kind: type[SpecModel]) -> str:
    (name,) = get_args(kind.model_fields["kind"].annotation)
    return str(name)


def parse_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """Parse `path.to.key=value` texts of the option `--set`, whose values are YAML, to values by path.

    Raises SpecError for a text of another form.
    """
    overrides: dict[str, Any] = {}
    for text in texts:
        path, equals, value = text.partition("=")
        option = f"--set {printable(text, 80)}"
        if not equals or not path:
            raise SpecError(f"{option}: write --set path.to.key=value")
        try:
            overrides[path] = load_yaml(value)
        except YamlError as error:
            raise SpecError(f"{option}: {error}") from None
    return overrides


def apply_overrides(content: dict[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """Set values by path in the content of a spec. Raises SpecError if a path leads below a value."""
    for path, value in overrides.items():
        try:
            if path.count(".") > MAX_DEPTH:
                raise ValueError(f"a path of more than {MAX_DEPTH} keys; shorten it")
            check_values(path)
            if not is_below(path, "data"):  # which may be a large table, in Python
                check_values(value)
            set_at(content, path, value)
        except ValueError as error:
            raise SpecError(f"{place(where)}: {printable(path, 60)}: {printable(str(error), 110)}") from None


def validate_new(spec: Spec, values: Mapping[str, Any]) -> None:
    """Validate a spec that is built in Python, in place. Raises SpecError with a line per problem."""
    kind = type(spec)
    content = {"kind": _kind_of(kind), **values}
    context = {"base": str(Path.cwd())}
    _validate(
        lambda: kind.__pydantic_validator__.validate_python(content, self_instance=spec, context=context),
        kind,
        kind.__name__,
    )


def override_spec(spec: AnyNewSpec, overrides: Mapping[str, Any]) -> AnyNewSpec:
    """Return a spec with other values by path. Raises SpecError with a line per problem."""
    if not overrides:
        return spec
    content = spec.model_dump(exclude_unset=True)
    content |= {name: value for name, value in spec if isinstance(value, Spec)}  # the job of a sweep
    where = type(spec).__name__
    apply_overrides(content, overrides, where)
    return validate_spec(content, type(spec), where, str(Path.cwd()))


def to_yaml(spec: Spec) -> str:
    """Return a spec as YAML, without defaults. Raises SpecError for rows in memory.

    Dollar signs are doubled, but for variables, which a spec that is built in Python may have for a cluster.
    """
    try:
        content = spec.model_dump(mode="json", exclude_unset=True)
    except PydanticSerializationError as error:
        raise SpecError(
            f"{type(spec).__name__}: {str(error).partition('ValueError: ')[2] or error}"
        ) from None
    return dump_yaml(escape_dollars({"kind": _kind_of(type(spec)), **content}))
