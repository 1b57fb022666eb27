"""What all specs share: strict blocks, and value types for URLs, durations and sizes."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_USER_AND_PASSWORD = re.compile(r"://[^/@:]*:(?!\d+(/|$))[^@]*@")
_TOKEN_AS_USER = re.compile(r"\bhttps?://[^/@]*@", re.IGNORECASE)
_SIGNED_QUERY = re.compile(
    r"[?&](sig|[\w-]*(signature|token|password|secret|api[_-]?key))=[^&]", re.IGNORECASE
)
_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?$")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?$", re.IGNORECASE)
_SHARE = re.compile(r"^(\d*\.?\d+(?:e-?\d+)?)\s*(%?)$", re.IGNORECASE)


class Block(BaseModel):
    """One mapping of a spec: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        defer_build=True,
        allow_inf_nan=False,
    )


class Part(Block):
    """A part of a job that can tell what is wrong with it only by looking at the rest of the job."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        """(path below this part, reason) of each problem: value, rule and remedy."""
        return ()


def column_may_be_left_out(schema: dict[str, Any]) -> None:
    """Inputs and tasks without a column get their own name before they are checked; an editor must know."""
    schema["required"].remove("column")


def not_built_yet(value: Any) -> Any:
    """Validator of a field whose machinery does not exist yet: refuses every value but null."""
    if value is not None:
        raise PydanticCustomError("not_built", "not built yet; leave it out")
    return value


NotBuiltYet = SkipJsonSchema[Annotated[Any, BeforeValidator(not_built_yet)]]


def _resolve(value: str, info: ValidationInfo) -> str:
    """Resolve a relative path against the folder of the spec's file; URLs stay as they are."""
    if holds_credentials(value):
        raise PydanticCustomError(
            "credentials", "holds credentials, and specs are stored; pass them in the environment instead"
        )
    if value.startswith("~"):
        return str(Path(value).expanduser())
    base = (info.context or {}).get("base")
    if base is None or _SCHEME.match(value) or value.startswith("/"):
        return value
    if _SCHEME.match(str(base)):
        try:
            return join_url(str(base), value)
        except ValueError as error:
            raise PydanticCustomError("path", "not a path: {reason}", {"reason": str(error)}) from None
    return str(Path(base, value).resolve())


def holds_credentials(value: str) -> bool:
    """Whether a text is a URL with a password, a token or a signature in it."""
    return any(form.search(value) for form in (_USER_AND_PASSWORD, _TOKEN_AS_USER, _SIGNED_QUERY))


def join_url(folder: str, relative: str) -> str:
    """The URL of `relative` in the folder at a URL. Raises ValueError where `..` leads out of the bucket."""
    scheme, separator, path = folder.partition("://")
    parts = path.rstrip("/").split("/") if separator else []
    scheme = scheme.rstrip("/:")  # `memory:/` is what is left of memory://FILE without its file
    for piece in relative.split("/"):
        if piece == "..":
            if len(parts) < 2:
                raise ValueError(f"it leads above the root of {folder}")
            parts.pop()
        elif piece not in ("", "."):
            parts.append(piece)
    return f"{scheme}://{'/'.join(parts)}"


def _resolve_model(value: str, info: ValidationInfo) -> str:
    """A model folder is a path when it looks like one; `name` and `org/name` are ids of a hub."""
    return _resolve(value, info) if value.startswith((".", "/")) or _SCHEME.match(value) else value


Url = Annotated[str, Field(min_length=1), AfterValidator(_resolve)]
"""A file, folder or glob: a path relative to the spec's file, or any fsspec URL."""

ModelRef = Annotated[str, Field(min_length=1), AfterValidator(_resolve_model)]
"""A model folder (a path starting with `.` or `/`, or a URL), or an id on the Hugging Face hub."""

UrlMember = Annotated[Url, Tag("url")]
"""A URL as the alternative to a mapping, told apart by `mapping_or_url`."""


def mapping_or_url(value: Any) -> str:
    """Discriminator of a field that is either a mapping or a URL: tells which one was meant."""
    return "url" if isinstance(value, str) else "mapping"


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$", max_length=63)]
"""A name that is also a folder name, an MLflow name and a Kubernetes label."""

Key = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]
"""The name of an input or a task: a Python identifier, so that it also is a field of an HTTP request."""


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        match = _DURATION.match(value.strip())
        if not match:
            raise PydanticCustomError("duration", "not a duration; write 500ms, 5s, 30m, 2h or 1d")
        return float(match[1]) * _SECONDS[match[2]]
    return value


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        match = _SIZE.match(value.strip())
        if not match:
            raise PydanticCustomError("size", "not a size; write 500KB, 20MB or 1GiB")
        power = "KMGT".find(match[2].upper()) + 1 if match[2] else 0
        return int(float(match[1]) * (1024 if match[3] else 1000) ** power)
    return value


def share(value: Any) -> Any:
    """Validator of a part of a whole: 1% is 0.01."""
    if isinstance(value, str):
        match = _SHARE.match(value.strip())
        if not match:
            raise PydanticCustomError("share", "not a share; write 0.01 or 1%")
        return float(match[1]) / (100 if match[2] else 1)
    return value


_TEXT_OR_NUMBER = [{"type": "string"}, {"type": "number", "minimum": 0}]

Seconds = Annotated[
    float,
    Field(ge=0),
    BeforeValidator(_seconds),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["5ms", "30s"]}),
]
"""A duration, kept in seconds."""

Bytes = Annotated[
    int,
    Field(ge=0),
    BeforeValidator(_bytes),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["20MB"]}),
]
"""A size, kept in bytes."""

Share = Annotated[
    float,
    Field(ge=0, le=1),
    BeforeValidator(share),
    WithJsonSchema({"anyOf": _TEXT_OR_NUMBER, "examples": ["1%", 0.01]}),
]
"""A part of a whole: 0.01 or 1%."""
