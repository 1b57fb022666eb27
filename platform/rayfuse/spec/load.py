"""Loading of specs from YAML, with `${VAR}`, `--set`, relative paths, and errors with their location."""

import importlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from rayfuse.errors import SpecError
from rayfuse.spec.base import Spec, SpecModel
from rayfuse.spec.error_messages import format_errors
from rayfuse.spec.paths import set_at

KINDS: dict[str, str] = {
    "job": "rayfuse.spec.job:Job",
    "sweep": "rayfuse.spec.sweep:Sweep",
    "service": "rayfuse.spec.service:Service",
    "cluster": "rayfuse.spec.cluster:Cluster",
}
"""Import path of the model of each kind of spec."""

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")

AnySpec = TypeVar("AnySpec", bound=SpecModel)
AnyNewSpec = TypeVar("AnyNewSpec", bound=Spec)


def spec_class(kind: str) -> type[SpecModel]:
    """Import the pydantic model of a kind of spec."""
    module, _, name = KINDS[kind].partition(":")
    found: type[SpecModel] = getattr(importlib.import_module(module), name)
    return found


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
    content = _parse(_read(where), where)
    apply_overrides(content, overrides or {}, where)
    _check_kind(content, kind, where)
    return content


def folder_of(where: str) -> str:
    """Return the folder or URL that relative paths in the spec file at `where` are resolved against."""
    return where.rsplit("/", 1)[0] if "://" in where else str(Path(where).resolve().parent)


def validate_spec(content: Any, kind: type[AnySpec], where: str, base: str | None = None) -> AnySpec:
    """Validate a mapping as a spec of `kind`; relative paths are resolved against the folder or URL `base`.

    Raises SpecError with a line for every error.
    """
    try:
        return TypeAdapter(kind).validate_python(content, context={"base": base})
    except ValidationError as error:
        raise SpecError("\n".join(f"{where}: {line}" for line in format_errors(error, kind))) from None


def read_kind(source: str | Path) -> str:
    """Read the `kind:` of a spec file. Raises SpecError if it is missing or unknown."""
    content = _parse(_read(str(source)), str(source))
    kind = content.get("kind")
    if kind not in KINDS:
        raise SpecError(f"{source}: kind: {kind!r} is not a kind of spec; one of: {', '.join(KINDS)}")
    return str(kind)


def _read(where: str) -> str:
    try:
        if "://" not in where:
            return Path(where).read_text(encoding="utf-8")
        return _download(where)
    except FileNotFoundError:
        raise SpecError(f"{where}: no such file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{where}: not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except IsADirectoryError:
        raise SpecError(f"{where}: a folder, not the YAML file of a spec") from None
    except OSError as error:
        raise SpecError(f"{where}: cannot be read: {error}") from None


def _download(url: str) -> str:
    import fsspec

    try:
        with fsspec.open(url, "rt", encoding="utf-8") as file:
            return str(file.read())
    except (FileNotFoundError, UnicodeDecodeError):
        raise
    except Exception as error:  # each store has its own errors
        raise OSError(f"{type(error).__name__}: {error}") from error


class _StrictLoader(yaml.SafeLoader):
    """Loader of safe YAML that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"key `{key}` is given twice; keep one, or rename the other",
                    key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        raise SpecError(f"{where}:{_yaml_problem(error, text)}") from None
    except yaml.YAMLError as error:
        raise SpecError(f"{where}: not YAML: {error}") from None
    if content is None:
        raise SpecError(f"{where}: the file is empty; `rayfuse schema` lists the kinds of spec")
    if not isinstance(content, dict):
        found = "a list" if isinstance(content, list) else "a single value"
        raise SpecError(f"{where}: not a spec: expected a YAML mapping such as `kind: job`, found {found}")
    return content


def _yaml_problem(error: yaml.MarkedYAMLError, text: str) -> str:
    if error.problem_mark is None:
        return f" {error.problem or 'not YAML'}"
    line = error.problem_mark.line
    problem = f"{line + 1}: {error.problem or 'not YAML'}"
    if "'\\t'" in problem:
        return f"{problem}; indent with spaces"
    # Inside braces an unquoted ${VAR} ends the mapping, which the parser's message does not explain.
    unquoted = "${" in "".join(text.splitlines()[line : line + 1])
    return f'{problem}; put "${{…}}" in quotes' if unquoted else problem


def _check_kind(content: dict[str, Any], kind: type[SpecModel], where: str) -> None:
    wanted = _kind_of(kind)
    given = content.get("kind")
    if given is None:
        raise SpecError(f"{where}: kind: missing; write `kind: {wanted}`")
    if given != wanted:
        is_kind = f"the file is `{given}`" if given in KINDS else f"`{given}` is not a kind of spec"
        raise SpecError(f"{where}: kind: this command requires `{wanted}`, and {is_kind}")


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
        if not equals or not path:
            raise SpecError(f"--set {text}: write --set path.to.key=value")
        try:
            overrides[path] = yaml.load(value, _StrictLoader)  # noqa: S506 - a SafeLoader
        except yaml.YAMLError:
            raise SpecError(f"--set {text}: the value is not YAML; check its quotes and brackets") from None
    return overrides


def apply_overrides(content: dict[str, Any], overrides: Mapping[str, Any], where: str) -> None:
    """Set values by path in the content of a spec. Raises SpecError if a path leads below a value."""
    for path, value in overrides.items():
        try:
            set_at(content, path, value)
        except ValueError as error:
            raise SpecError(f"{where}: {path}: {error}") from None


def validate_new(spec: Spec, values: Mapping[str, Any]) -> None:
    """Validate a spec that is built in Python, in place. Raises SpecError with a line per problem."""
    kind = type(spec)
    content = {"kind": _kind_of(kind), **values}
    try:
        kind.__pydantic_validator__.validate_python(
            content, self_instance=spec, context={"base": str(Path.cwd())}
        )
    except ValidationError as error:
        raise SpecError(
            "\n".join(f"{kind.__name__}: {line}" for line in format_errors(error, kind))
        ) from None


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
    """Return a spec as YAML, without defaults. Raises SpecError for rows in memory."""
    try:
        content = spec.model_dump(mode="json", exclude_unset=True)
    except PydanticSerializationError as error:
        raise SpecError(
            f"{type(spec).__name__}: {str(error).partition('ValueError: ')[2] or error}"
        ) from None
    content = {"kind": _kind_of(type(spec)), **content}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def substitute(node: Any, environment: Mapping[str, str], where: str, path: str = "") -> Any:
    """Return `node` with `${VAR}` and `${VAR:-default}` replaced in every string below it.

    Raises SpecError with file, path and variable if one is not set and has no default.
    """
    if isinstance(node, dict):
        return {
            k: substitute(v, environment, where, f"{path}.{k}" if path else str(k)) for k, v in node.items()
        }
    if isinstance(node, list):
        return [substitute(v, environment, where, f"{path}.{i}") for i, v in enumerate(node)]
    if not isinstance(node, str):
        return node

    def value_of(match: re.Match[str]) -> str:
        name, default = match.groups()
        value = environment.get(name) or default
        if value is None:
            raise SpecError(
                f"{where}: {path}: the environment variable {name} is not set or empty; "
                f"set it, or write ${{{name}:-default}}"
            )
        return value

    return _VARIABLE.sub(value_of, node)
