"""Sequences of items."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.encoders import (
    EmbeddingEncoderConfig,
    ItemSequenceEncoderConfig,
)
from rayfuse.spec.inputs.base import ColumnInput

if TYPE_CHECKING:
    pass


class ItemSequenceInput(ColumnInput):
    """A sequence of items, such as a user's purchases: a list of ids, or of {"id": …, "time": …}."""

    holds_lists: ClassVar[bool] = True
    length_field: ClassVar[str | None] = "max_length"
    length_mask: ClassVar[str | None] = "item_mask"
    pads_to_longest: ClassVar[bool] = True

    type: Literal["item_sequence"]
    encoder: ItemSequenceEncoderConfig = EmbeddingEncoderConfig(type="embedding")
    """Encoder of this input."""
    max_length: int = Field(64, ge=1, le=65536)
    """Number of items to which a longer sequence is cut; the newest are used."""
    min_frequency: int = Field(2, ge=1)
    """Occurrences in the training rows below which an item is unknown, so that the model learns an embedding of
    `unknown`."""
    vocabulary: list[str] | None = None
    """Known items, as text; by default those of the training rows, most frequent first."""
