"""Images."""

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from rayfuse.spec.augment import ImageAugment
from rayfuse.spec.encoders import (
    ConvEncoderConfig,
    ImageEncoderConfig,
)
from rayfuse.spec.inputs.base import reject_field
from rayfuse.spec.inputs.parts import PartInput

if TYPE_CHECKING:
    pass


ValueRange = Literal["auto", "dtype"] | tuple[float, float]
"""`auto`: fitted on the training rows; `dtype`: 0 to 65535 for integers, 0 to 1 for floats; or [low, high]."""


class ImageInput(PartInput):
    """An image, in any format that Pillow reads."""

    type: Literal["image"]
    encoder: ImageEncoderConfig = ConvEncoderConfig(type="conv")
    """Encoder of this input."""
    size: int = Field(224, ge=8, le=4096)
    """Side in pixels to which images are resized (with a Hugging Face encoder, its own processor decides)."""
    range: ValueRange = "auto"
    """Values shown as black and white, of images with more than 8 bits per channel; those of 8 bits have 0 and 255.

    `auto`: the range of the training rows without far outliers. `dtype`: 0 to 65535 for integers, 0 to 1 for floats.
    """
    augment: list[ImageAugment] = Field(default_factory=list)
    """Random changes of training rows, applied in order."""

    @model_validator(mode="after")
    def _check_range(self) -> "ImageInput":
        if isinstance(self.range, tuple) and self.range[0] >= self.range[1]:
            reject_field("range", f"{list(self.range)} is empty; write [low, high], the lower value first")
        return self
