"""Columns of a tabular input."""

from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import SpecModel


class InferredColumn(SpecModel):
    """A column whose kind is inferred from the training rows: numbers if all values are, else categories."""

    type: Literal["inferred"] = "inferred"
    """Kind of column."""


class NumberColumn(SpecModel):
    """A column of numbers, scaled by statistics of the training rows."""

    type: Literal["number"] = "number"
    """Kind of column."""
    center: float | None = None
    """Subtracted from each value; by default fitted on the training rows."""
    scale: float | None = Field(None, gt=0)
    """Divisor of each value after centering; by default fitted on the training rows."""


class CategoryColumn(SpecModel):
    """A column of categories; one that is not in its vocabulary is `unknown`."""

    type: Literal["category"] = "category"
    """Kind of column."""
    vocabulary: list[str] | None = None
    """Known values, as text; by default those of the training rows, most frequent first."""
    inferred: bool = False
    """True if the kind was inferred from the training rows; it is then reported if most values look like numbers."""


Column = Annotated[InferredColumn | NumberColumn | CategoryColumn, Field(discriminator="type")]
"""A column of a tabular input."""
ColumnKind = Literal["inferred", "number", "category"]
"""Name of a kind of column."""


def parse_columns(value: Any) -> Any:
    """Expand a list of names to inferred columns, and the name of a kind to a block of that type."""
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        if len(set(value)) < len(value):
            duplicate = next(name for name in value if value.count(name) > 1)
            raise PydanticCustomError("columns", "`{name}` is listed twice; remove one", {"name": duplicate})
        value = dict.fromkeys(value, "inferred")
    if not isinstance(value, dict):
        return value
    return {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in value.items()}
