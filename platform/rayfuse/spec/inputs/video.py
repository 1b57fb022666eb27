"""Videos."""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.encoders import (
    ConvEncoderConfig,
    FramesEncoderConfig,
    VideoEncoderConfig,
)
from rayfuse.spec.inputs.base import ColumnInput

if TYPE_CHECKING:
    pass


class VideoInput(ColumnInput):
    """A video, in any format that FFmpeg reads. Frames are sampled evenly by time.

    Its audio is a separate input with `audio_of`.
    """

    length_field: ClassVar[str | None] = "num_frames"
    length_mask: ClassVar[str | None] = "frame_mask"
    pads_to_longest: ClassVar[bool] = True

    type: Literal["video"]
    encoder: VideoEncoderConfig = FramesEncoderConfig(type="frames", encoder=ConvEncoderConfig(type="conv"))
    """Encoder of this input."""
    num_frames: int = Field(8, ge=1, le=512)
    """Frames to sample, each from the middle of an equal part of the clip; fewer if it has fewer."""
    size: int = Field(112, ge=8, le=2048)
    """Side in pixels to which frames are resized."""
    max_seconds: float = Field(60.0, gt=0, le=7200)
    """Length in seconds after which a clip is cut."""
