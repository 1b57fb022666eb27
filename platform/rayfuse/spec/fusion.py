"""How aligned inputs become one vector."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.base import Part
from rayfuse.spec.custom import Custom, builtin_or_custom


class CustomFusion(Custom):
    """A subclass of rayfuse.model.fusion.FusionModule, by import path."""


class ConcatFusion(Part):
    """One vector per input, side by side, through a multilayer perceptron."""

    type: Literal["concat"]
    hidden: int = Field(256, ge=8)
    layers: int = Field(2, ge=1, le=8)
    dropout: float = Field(0.1, ge=0, lt=1)


class TransformerFusion(Part):
    """Self-attention over the tokens of all inputs and a summary token; absent inputs are masked."""

    type: Literal["transformer"]
    layers: int = Field(2, ge=1, le=48)
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if job.align.dim % self.heads:
            yield "heads", f"{self.heads} heads do not divide align.dim {job.align.dim}"


_Builtin = Annotated[ConcatFusion | TransformerFusion, Field(discriminator="type")]
Fusion = Annotated[
    Annotated[_Builtin, Tag("builtin")] | Annotated[CustomFusion, Tag("custom")],
    Discriminator(builtin_or_custom),
]
