"""Texts from several columns of a row."""

from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Any

from pydantic_core import PydanticCustomError

from rayfuse.spec.base import is_missing


def check_template(template: str) -> str:
    """Return a template of texts and {COLUMN}. Raises PydanticCustomError if it is malformed or has no column."""
    try:
        columns = template_columns(template)
        has_options = any(spec or conversion for _, _, spec, conversion in Formatter().parse(template))
    except ValueError as error:
        raise PydanticCustomError(
            "template", "{reason}; write {{ and }} for braces", {"reason": str(error)}
        ) from None
    if not columns or "" in columns:
        raise PydanticCustomError("template", "not a template with columns; write one as in {title}: {body}")
    if has_options:
        raise PydanticCustomError("template", "a column has a format; write its name alone, as in {price}")
    return template


def template_columns(template: str) -> list[str]:
    """Return the columns of a template, each once."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))


def fill_template(template: str, values: Mapping[str, Any]) -> str | None:
    """Return the text of a row; None if all columns are missing.

    Missing values are empty, a line of the template whose columns all are is left out, and white space at the ends is
    removed.
    """
    if all(is_missing(values.get(column)) for column in template_columns(template)):
        return None
    lines = (_fill_line(line, values) for line in template.split("\n"))
    return "\n".join(line for line in lines if line is not None).strip()


def _fill_line(line: str, values: Mapping[str, Any]) -> str | None:
    parts = list(_parts(line, values))
    if any(column is not None for _, column in parts) and not any(column for _, column in parts):
        return None
    return "".join(literal + (column or "") for literal, column in parts)


def _parts(line: str, values: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Yield each literal text, and the text of the column after it; None at the end."""
    for literal, column, _, _ in Formatter().parse(line):
        yield literal, None if column is None else _to_text(values.get(column))


def _to_text(value: Any) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
