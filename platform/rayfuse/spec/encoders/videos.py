"""Options of the built-in encoder of videos."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.custom import builtin_or_custom
from rayfuse.spec.encoders.base import CustomEncoder, EncoderPart
from rayfuse.spec.encoders.huggingface import HuggingFaceEncoder
from rayfuse.spec.encoders.pictures import ConvEncoder, PatchTransformerEncoder, ResnetEncoder

_Image = Annotated[
    ConvEncoder | ResnetEncoder | PatchTransformerEncoder | HuggingFaceEncoder, Field(discriminator="type")
]
ImageEncoder = Annotated[
    Annotated[_Image, Tag("builtin")] | Annotated[CustomEncoder, Tag("custom")],
    Discriminator(builtin_or_custom),
]


class FramesEncoder(EncoderPart):
    """An encoder of pictures on every frame, and then one vector of all of them."""

    type: Literal["frames"]
    encoder: ImageEncoder
    """Encodes each frame; has its own `lr`."""
    pool: Literal["mean", "transformer", "none"] = "mean"
    """`mean`: of the frames, whose order is lost; `transformer`: a small one over the frames and their times, then the
    mean; `none` hands every frame, with its time, to the fusion."""
    layers: int = Field(2, ge=1, le=48)
    """Used with `pool: transformer`."""
    heads: int = Field(4, ge=1, le=64)
    """Used with `pool: transformer`: heads of its attention; they share the frames' width."""
    dropout: float = Field(0.1, ge=0, lt=1)

    @property
    def frozen(self) -> bool:
        return self.encoder.frozen and self.pool != "transformer"

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        yield from ((f"encoder.{where}", reason) for where, reason in self.encoder.problems(job))
