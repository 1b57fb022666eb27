"""Base models of all specs, and value types for URLs, durations and sizes."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    Tag,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
)
from pydantic.json_schema import JsonSchemaValue, SkipJsonSchema
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from rayfuse.errors import SpecError
from rayfuse.formatting import CONTROL_CHARACTER, printable

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_SCHEME_WITHOUT_SLASHES = re.compile(r"^(s3|gs|gcs|az|abfss?|hdfs|https?):/?(?!/)")
_USER_AND_PASSWORD = re.compile(r"://[^/@:]*:(?!\d+(/|$))[^@]*@")
_TOKEN_AS_USER = re.compile(r"\bhttps?://[^/@]*@", re.IGNORECASE)
_SIGNED_QUERY = re.compile(
    r"[?&](sig|[\w-]*(signature|token|password|secret|api[_-]?key))=[^&]", re.IGNORECASE
)
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?$")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGTP]?)(i?)B?$", re.IGNORECASE)
_FRACTION = re.compile(r"^(\d*\.?\d+(?:e-?\d+)?)\s*(%?)$", re.IGNORECASE)


_INTEGERS = range(-(2**63), 2**64)


def _check_number(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    """Reject true and false, which Python counts as the integers 1 and 0, and integers of more than 64 bits."""
    if isinstance(value, bool):
        raise PydanticCustomError("number", "must be a number, not {value}", {"value": str(value).lower()})
    number = validate(value)
    if isinstance(number, int) and number not in _INTEGERS:
        raise PydanticCustomError("number", "must have at most 64 bits; use a smaller number")
    return number


def _guard_numbers(schema: Any) -> Any:
    """Return a schema of pydantic whose numbers are neither booleans nor integers of more than 64 bits.

    Schemas of models inside it are left as they are: each guards its own fields.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(map(_guard_numbers, schema))
    if not isinstance(schema, dict) or schema.get("type") == "model" or _is_guard(schema):
        return schema
    is_number_literal = schema.get("type") == "literal" and int in map(type, schema["expected"])
    if schema.get("type") in ("int", "float") or is_number_literal:
        return core_schema.no_info_wrap_validator_function(_check_number, cast(CoreSchema, schema))
    return {
        key: _guard_numbers(value) if type(value) in _CONTAINERS and key not in _NO_SCHEMAS else value
        for key, value in schema.items()
    }


def _is_guard(schema: Mapping[str, Any]) -> bool:
    """Return whether a schema is guarded; pydantic keeps that of a class, and asks for it again."""
    function = schema.get("function")
    return isinstance(function, dict) and function.get("function") is _check_number


_CONTAINERS = (dict, list, tuple)
_NO_SCHEMAS = {
    "default",
    "default_factory",
    "expected",
    "function",
    "metadata",
    "ref",
    "schema_ref",
    "serialization",
}
"""Keys of a schema of pydantic that hold no other schemas."""


class SpecModel(BaseModel):
    """A mapping of a spec: unknown keys are errors, values are immutable, and booleans are no numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        defer_build=True,
        allow_inf_nan=False,
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        model: Any = schema
        while model["type"] != "model":  # inside its validators
            model = model["schema"]
        model["schema"] = _guard_numbers(model["schema"])
        return schema

    def model_post_init(self, context: Any, /) -> None:
        """Count `type` as set, so that `exclude_unset` keeps what selects the class of a part."""
        if "type" in type(self).model_fields:
            self.model_fields_set.add("type")


Problems = Iterable[tuple[str, str]]
"""Validation errors: the path below a section, and the message with value, rule and remedy."""


class Spec(SpecModel):
    """A spec of its own kind: loaded from YAML, or built from Python objects.

    In Python `kind` may be left out, sections may be dicts, and relative paths are resolved against the working folder.
    """

    def __init__(self, *files: Any, **values: Any) -> None:
        """Build a spec. Raises SpecError with a line per problem."""
        name = type(self).__name__
        if files:
            raise SpecError(f"{name} takes keywords; for a YAML file write {name}.from_yaml({files[0]!r})")
        from rayfuse.spec.load import validate_new

        validate_new(self, values)

    # As in pydantic's RootModel: without it, validation would call `__init__` and lose its context.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def from_yaml(cls, path: str | Path, **overrides: Any) -> Self:
        """Load a spec file, a path or any fsspec URL; `overrides` are values by path, as in `**{"train.epochs": 3}`.

        Raises SpecError with a line for every problem.
        """
        from rayfuse.spec.load import load_spec

        return load_spec(path, cls, overrides)

    def override(self, **overrides: Any) -> Self:
        """Return the spec with other values by path, as in `job.override(**{"train.epochs": 3})`, validated again.

        Raises SpecError with a line for every problem.
        """
        from rayfuse.spec.load import override_spec

        return override_spec(self, overrides)

    def to_yaml(self, path: str | Path | None = None) -> str:
        """Return the spec as YAML, without defaults, and write it to the file `path` if given; secrets are masked.

        Paths are absolute. Raises SpecError for rows in memory, which YAML cannot hold.
        """
        from rayfuse.spec.load import to_yaml

        text = to_yaml(self)
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text


class JobSection(SpecModel):
    """A section of a job with rules that depend on other sections."""

    def validate_in_job(self, job: "Job") -> Problems:
        """Yield an error for each rule that this section breaks in a job."""
        return ()


def make_column_optional(schema: dict[str, Any]) -> None:
    """Remove `column` from the required properties of a JSON Schema: it defaults to the name of the input or task."""
    schema["required"].remove("column")


def reject_unimplemented(value: Any) -> Any:
    """Validate a field whose feature is not implemented yet: reject every value but null."""
    if value is not None:
        raise PydanticCustomError("not_built", "not implemented yet; leave it out")
    return value


Unimplemented = SkipJsonSchema[Annotated[Any, BeforeValidator(reject_unimplemented)]]
"""A field whose feature is not implemented yet; it is not in the JSON Schema."""


def resolve_url(value: str, info: ValidationInfo) -> str:
    """Resolve a relative path against the folder of the spec's file; return URLs unchanged."""
    if holds_credentials(value):
        raise PydanticCustomError(
            "credentials", "contains credentials, and specs are stored; pass them in environment variables"
        )
    if match := _SCHEME_WITHOUT_SLASHES.match(value):
        raise PydanticCustomError("url", "not a URL; write {scheme}://…", {"scheme": match[1]})
    if CONTROL_CHARACTER.search(value):
        raise PydanticCustomError("path", "not a path: it holds control characters; remove them")
    base = (info.context or {}).get("base")
    try:
        if value.startswith("~"):
            return str(Path(value).expanduser())
        if base is None or _SCHEME.match(value) or value.startswith("/"):
            return value
        return join_url(str(base), value) if _SCHEME.match(str(base)) else str(Path(base, value).resolve())
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # no such user, a loop of links, above the root of a bucket
        raise PydanticCustomError(
            "path",
            "not a path: {reason}; write an absolute path or a URL",
            {"reason": printable(str(error).rstrip("."), 120)},
        ) from None


def holds_credentials(value: str) -> bool:
    """Return whether a string is a URL that contains a password, a token or a signature."""
    return any(pattern.search(value) for pattern in (_USER_AND_PASSWORD, _TOKEN_AS_USER, _SIGNED_QUERY))


def join_url(folder: str, relative: str) -> str:
    """Return the URL of a relative path in the folder at a URL. Raises ValueError if `..` leads out of the bucket."""
    scheme, separator, path = folder.partition("://")
    parts = path.rstrip("/").split("/") if separator else []
    scheme = scheme.rstrip("/:")  # `memory:/` remains of memory://FILE without its file
    for name in relative.split("/"):
        if name == "..":
            if len(parts) < 2:
                raise ValueError(f"it leads above the root of {folder}")
            parts.pop()
        elif name not in ("", "."):
            parts.append(name)
    return f"{scheme}://{'/'.join(parts)}"


def _resolve_model(value: str, info: ValidationInfo) -> str:
    """Resolve a path of a model folder; return ids of a hub, `name` and `org/name`, unchanged."""
    return resolve_url(value, info) if value.startswith((".", "/")) or _SCHEME.match(value) else value


Url = Annotated[str, Field(min_length=1), AfterValidator(resolve_url)]
"""A file, folder or glob: a path relative to the spec's file, or any fsspec URL."""

ModelRef = Annotated[str, Field(min_length=1), AfterValidator(_resolve_model)]
"""A model folder (a path starting with `.` or `/`, or a URL), or an id on the Hugging Face hub."""

UrlMember = Annotated[Url, Tag("url")]
"""A URL in a union with a mapping, discriminated by `mapping_or_url`."""


def mapping_or_url(value: Any) -> str:
    """Return the tag of a value that is either a URL or a mapping."""
    return "url" if isinstance(value, str) else "mapping"


@dataclass(frozen=True)
class Pattern:
    """Validator of a text by a regular expression, with an error message in words instead of the expression."""

    regex: str
    """Expression that the whole text must match; part of the JSON Schema."""
    rule: str
    """Message that starts with `not a` or `not one of`, as in "not an import path; write MODULE:CLASS"."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {**handler(schema), "pattern": self.regex}

    def _check(self, value: str) -> str:
        if not re.fullmatch(self.regex, value):
            raise PydanticCustomError("pattern", "{rule}", {"rule": self.rule})
        return value


Name = Annotated[
    str,
    Field(max_length=63),
    Pattern(
        r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$",
        "not a name; write letters, digits, `-`, `_` and `.`, with a letter or digit at both ends",
    ),
]
"""A name that is valid as a folder name, an MLflow name and a Kubernetes label."""

Key = Annotated[
    str,
    Field(max_length=63),
    Pattern(
        r"^[A-Za-z_][A-Za-z0-9_]*$", "not a name; write letters, digits and `_`, without a digit at the start"
    ),
]
"""The name of an input or a task: a Python identifier, as it is also a field of HTTP requests."""


def _parse_duration(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if not match:
            raise PydanticCustomError("duration", "not a duration; write 500ms, 5s, 30m, 2h or 1d")
        return float(match[1]) * _SECONDS_PER_UNIT[match[2]]
    return value


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 500KB, 20 MB, 1GiB or 16Gi.

    K, M, G, T and P count in powers of 1000, with an `i` in powers of 1024. Raises ValueError for any other text.
    """
    match = _SIZE.match(text.strip())
    if not match:
        raise PydanticCustomError("size", "not a size; write 500KB, 20MB or 1GiB")
    power = "KMGTP".find(match[2].upper()) + 1 if match[2] else 0
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


def _parse_bytes(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


def parse_fraction(value: Any) -> Any:
    """Return the fraction that a text such as `1%` or `0.01` means; return other values unchanged."""
    if isinstance(value, str):
        match = _FRACTION.match(value.strip())
        if not match:
            raise PydanticCustomError("fraction", "not a fraction; write 0.01 or 1%")
        return float(match[1]) / (100 if match[2] else 1)
    return value


_TEXT_OR_NUMBER = [{"type": "string"}, {"type": "number", "minimum": 0}]

Seconds = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(_parse_duration),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["5ms", "30s"]}),
]
"""A duration in seconds; a text may have a unit: 500ms, 5s, 30m, 2h or 1d."""

Bytes = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(_parse_bytes),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["20MB"]}),
]
"""A size in bytes; a text may have a unit: 500KB, 20MB or 1GiB."""

Fraction = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(parse_fraction),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["1%", 0.01]}),
]
"""A fraction from 0 to 1; a text may be a percentage: 1%."""


def is_missing(value: Any) -> bool:
    """Return whether a value is null, or what data frames use for null: NaN, NaT or NA."""
    if value is None or type(value).__name__ == "NAType":  # of pandas, which specs do not import
        return True
    if isinstance(value, Decimal):
        return value.is_nan()
    return isinstance(value, (float, datetime)) and value != value
