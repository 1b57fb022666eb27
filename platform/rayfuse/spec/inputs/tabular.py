"""Columns of a table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from rayfuse.spec.base import Problems
from rayfuse.spec.cells import CellType
from rayfuse.spec.encoders import (
    MLPEncoderConfig,
    TabularEncoderConfig,
)
from rayfuse.spec.inputs.base import BaseInput
from rayfuse.spec.table_columns import CategoryColumn, Column, ColumnKind, NumberColumn, parse_columns

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class TabularInput(BaseInput):
    """Columns of a table: numbers, which are scaled, and categories. Any of them may be missing."""

    needs_column: ClassVar[bool] = False

    type: Literal["tabular"]
    encoder: TabularEncoderConfig = MLPEncoderConfig(type="mlp")
    """Encoder of this input."""
    columns: Annotated[
        dict[str, Column],
        Field(min_length=1),
        BeforeValidator(parse_columns, json_schema_input_type=list[str] | dict[str, ColumnKind | Column]),
    ]
    """`{age: number, city: category}`, or a list of names whose kinds are inferred from the training rows.

    They are columns of the rows themselves, unless `column` names one that contains them.
    """
    column: str | None = Field(None, min_length=1)
    """Column of the rows with a mapping {column: value}, or, with `max_items`, a list of such mappings."""
    min_frequency: int = Field(2, ge=1)
    """Number of training rows below which a category is unknown, so that the model learns an embedding of `unknown`."""

    @property
    def numeric_columns(self) -> list[str]:
        """Names of the number columns, in the order of the features `numbers` and `missing`."""
        return [name for name, column in self.columns.items() if isinstance(column, NumberColumn)]

    @property
    def category_vocabularies(self) -> dict[str, list[str]]:
        """Known values of each category column, in the order of the feature `categories`; their codes start at 2."""
        return {
            name: column.vocabulary or []
            for name, column in self.columns.items()
            if isinstance(column, CategoryColumn)
        }

    @property
    def source_columns(self) -> dict[str, CellType]:
        if self.column is not None:
            return {self.column: "json"}
        kinds = self.columns.items()
        cells: dict[str, CellType] = {"inferred": "inferred", "number": "float", "category": "category"}
        return {name: cells[kind.type] for name, kind in kinds}

    @property
    def column_key(self) -> str:
        return "columns" if self.column is None else "column"

    @property
    def reads_mapping(self) -> bool:
        return self.column is None

    def read(self, values: Mapping[str, Any]) -> Any:
        if self.column is not None:
            return values.get(self.column)
        found = {name: values.get(name) for name in self.columns}
        return found if any(value is not None and value == value for value in found.values()) else None

    def validate_in_job(self, job: "Job") -> Problems:
        if self.max_items > 1 and self.column is None:
            yield (
                "max_items",
                f"{self.max_items} needs a `column` with a list of mappings; set it, or leave max_items out",
            )
