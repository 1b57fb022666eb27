"""Options of the built-in encoder of videos."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from rayfuse.spec.base import Problems
from rayfuse.spec.encoders.base import BaseEncoderConfig
from rayfuse.spec.family import Family, PartOf

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


def _image_encoders() -> Family[BaseEncoderConfig]:
    from rayfuse.spec.encoders import ENCODERS  # which contains this module's encoder

    return ENCODERS["image"]


class FramesEncoderConfig(BaseEncoderConfig):
    """An encoder of images on every frame, pooled over the frames."""

    type: Literal["frames"]
    encoder: Annotated[BaseEncoderConfig, PartOf(_image_encoders)]
    """Encoder of each frame; it has its own `lr`."""
    pool: Literal["mean", "transformer", "none"] = "mean"
    """`mean`: the mean of the frames, without their order; `transformer`: a small transformer over the frames and their
    times, then the mean; `none` passes every frame, with its time, to the fusion."""
    layers: int = Field(2, ge=1, le=48)
    """Number of layers with `pool: transformer`."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads with `pool: transformer`; they must divide the width of the frame encoder's output."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate on the outputs, and in each layer with `pool: transformer`."""

    @property
    def frozen(self) -> bool:
        return self.encoder.frozen and self.pool != "transformer"

    @property
    def inner_encoders(self) -> Mapping[str, BaseEncoderConfig]:
        return {"encoder": self.encoder}

    def validate_in_job(self, job: "Job") -> Problems:
        yield from ((f"encoder.{where}", reason) for where, reason in self.encoder.validate_in_job(job))
