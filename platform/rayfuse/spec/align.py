"""How encoded inputs are brought to one width."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rayfuse.spec.align_losses import AlignLosses
from rayfuse.spec.base import Part


class _Align(Part):
    dim: int = Field(128, ge=8, le=8192)
    """The common width."""
    standardize: bool = False
    """Bring what each encoder makes to mean 0 and deviation 1 in every dimension, as training rows have it when
    training begins. For encoders whose vectors have a large mean in common."""
    loss: AlignLosses = Field(default_factory=list)
    """Losses beside the tasks' own that pull the inputs of a row together: one, or a list of several."""


class LinearAlign(_Align):
    """One linear map and a layer norm per input, to a common width."""

    type: Literal["linear"] = "linear"
    dropout: float = Field(0.0, ge=0, lt=1)
    """Of the numbers that the map reads."""
    norm: bool = True
    """Whether the layer norm follows."""


class MLPAlign(_Align):
    """A multilayer perceptron and a layer norm per input, each token by itself."""

    type: Literal["mlp"]
    hidden: int = Field(256, ge=8, le=16384)
    """Width of the hidden layers."""
    layers: int = Field(2, ge=2, le=8)
    """Linear maps."""
    dropout: float = Field(0.1, ge=0, lt=1)


class TransformerAlign(_Align):
    """Learned queries read each input through cross-attention (Perceiver, Jaegle et al., 2021; the Q-Former of
    BLIP-2, Li et al., 2023): every input becomes the same number of tokens."""

    type: Literal["transformer"]
    queries: int = Field(4, ge=1, le=256)
    """Learned queries per input, which is also how many tokens come of it."""
    layers: int = Field(1, ge=1, le=24)
    heads: int = Field(4, ge=1, le=64)
    dropout: float = Field(0.1, ge=0, lt=1)

    def problems(self, job: Any) -> Iterable[tuple[str, str]]:
        if self.dim % self.heads:
            yield "heads", f"{self.heads} heads do not divide dim {self.dim}"


class IdentityAlign(_Align):
    """What the encoder makes, as it is; it must be `dim` wide."""

    type: Literal["identity"]


def _linear_unless_said(value: Any) -> str:
    """Discriminator: a block without a type is linear."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return str(given or "linear")


Align = Annotated[
    Annotated[LinearAlign, Tag("linear")]
    | Annotated[MLPAlign, Tag("mlp")]
    | Annotated[TransformerAlign, Tag("transformer")]
    | Annotated[IdentityAlign, Tag("identity")],
    Discriminator(_linear_unless_said),
]
