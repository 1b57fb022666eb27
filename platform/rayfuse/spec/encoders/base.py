"""What the options of every encoder share."""

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from rayfuse.spec.base import Part
from rayfuse.spec.custom import Custom

Pool = Literal["mean", "first", "last", "max", "attention", "none"]
"""How tokens become one vector: their mean, first, last or maximum, or their mean with learned weights (attention);
`none` hands every token to the fusion. Padding never counts."""


class EncoderPart(Part):
    """An encoder's block."""

    lr: float | None = Field(None, gt=0)
    """Learning rate of this encoder; the optimizer's where absent."""

    @property
    def frozen(self) -> bool:
        """Whether nothing in it is trained, so that it makes the same of a value every time."""
        return False


class LayeredEncoder(EncoderPart):
    """An encoder with a stack of layers whose learning rates may fall from top to bottom."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Learning rate × layer_decay per layer below the last: what pretraining learned first changes least
    (ELECTRA, Clark et al., 2020; BEiT, Bao et al., 2022). 1 trains all layers alike."""


class CustomEncoder(Custom, LayeredEncoder):
    """A subclass of rayfuse.model.encoders.Encoder, by import path."""

    train: Literal["frozen"] | None = None
    """`frozen`: nothing of it is trained, it runs as in evaluation, and what it makes of a value is kept by the cache.
    Absent: the class decides what is trained."""

    @property
    def frozen(self) -> bool:
        return self.train == "frozen"

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.frozen and self.layer_decay != 1:
            yield "layer_decay", "a frozen encoder has no learning rates; leave it out, or leave `train` out"


class WidthInHeads(EncoderPart):
    """An encoder with attention."""

    width: int = Field(64, ge=8, le=4096)
    """Width of every token."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they share the width."""

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.width % self.heads:
            yield "heads", f"{self.heads} heads do not divide width {self.width}"
        elif self.width % 4:
            yield "width", f"{self.width} is not a multiple of 4, which encoded positions need"
