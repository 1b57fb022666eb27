"""Options that inputs share."""

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic_core import PydanticCustomError

from rayfuse.spec.align import AlignConfig
from rayfuse.spec.augment import CustomOnlyAugment
from rayfuse.spec.base import JobSection, make_column_optional
from rayfuse.spec.cells import CellType
from rayfuse.spec.encoders import BaseEncoderConfig


class BaseInput(JobSection):
    """Options of every input."""

    needs_column: ClassVar[bool] = True
    """True if it needs a `column`, which is by default the input's name."""
    length_field: ClassVar[str | None] = None
    """The field that bounds the length of a value; None if all values have one size."""
    length_mask: ClassVar[str | None] = None
    """The feature with one entry per step of a value; None if there is none."""
    pads_to_longest: ClassVar[bool] = False
    """True if values are padded to the longest of a batch."""
    has_words: ClassVar[bool] = False
    """True if a value is a text, which may be given as a list of words."""

    type: str
    """Kind of input, or the import path of a custom one."""
    encoder: BaseEncoderConfig
    """Encoder of this input."""
    shares_encoder: str | None = Field(None, min_length=1)
    """Another input of the same type, whose encoder this one has too, with one set of weights, as the two texts of a
    retrieval (siamese networks; Bromley et al., 1993)."""
    optional: bool = False
    """True if rows and requests may lack this input."""
    max_items: int = Field(1, ge=1, le=256)
    """Largest number of values per row; above 1, rows and requests contain lists, such as several images."""
    align: AlignConfig | None = None
    """Projection of this input to the common width; by default as `align` of the job."""
    augment: list[CustomOnlyAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @model_serializer(mode="wrap")
    def _without_shared_encoder(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out an encoder that is described by another input."""
        content: dict[str, Any] = serialize(self)
        if self.shares_encoder is not None:
            content.pop("encoder", None)
        return content

    @property
    def source_columns(self) -> dict[str, CellType]:
        """The columns of the rows that it reads → how their cells are parsed in a csv file."""
        raise NotImplementedError

    @property
    def column_key(self) -> str:
        """The field that names those columns."""
        raise NotImplementedError

    @property
    def reads_mapping(self) -> bool:
        """True if a value is a mapping of several columns of a row."""
        return False

    @property
    def fallback_input(self) -> str | None:
        """The input whose value is used if a request contains none for this one."""
        return None

    def of_fallback(self, value: Any) -> Any:
        """Return its value in that of `fallback_input`, which by default is the same."""
        return value

    @property
    def dialogue(self) -> str | None:
        """The dialogue whose messages have its values as parts; None if its values stand alone."""
        return None

    @property
    def required_in_request(self) -> bool:
        """True if every request must contain it."""
        return not self.optional and self.fallback_input is None

    def read(self, values: Mapping[str, Any]) -> Any:
        """Return its raw value in a row; None if the row has none."""
        raise NotImplementedError


class ColumnInput(BaseInput):
    """Options of an input that is one column of the rows."""

    model_config = ConfigDict(json_schema_extra=make_column_optional)

    holds_lists: ClassVar[bool] = False
    """True if a single value is a list or a mapping."""

    column: str = Field(min_length=1)
    """Column of the rows; by default the input's name."""

    @property
    def source_columns(self) -> dict[str, CellType]:
        return {self.column: "json" if self.max_items > 1 or self.holds_lists else "str"}

    @property
    def column_key(self) -> str:
        return "column"

    def read(self, values: Mapping[str, Any]) -> Any:
        return values.get(self.column)


def reject_field(path: str, reason: str) -> NoReturn:
    """Raise the validation error of a field of an input."""
    raise PydanticCustomError("input", "{reason}", {"reason": reason, "path": path})
