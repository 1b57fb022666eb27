"""Alignments: how encoded inputs are projected to a common width."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.align_losses import AlignLossConfigs
from rayfuse.spec.base import JobSection, Problems
from rayfuse.spec.family import CustomConfig, Family, PartOf

if TYPE_CHECKING:
    from rayfuse.spec.job import Job


class BaseAlignConfig(JobSection):
    """Options of every alignment."""

    trainable: ClassVar[bool] = True
    """True if training changes how it projects vectors."""
    preserves_positions: ClassVar[bool] = True
    """True if it outputs one token for each token of the encoder, in order."""

    type: str
    """Kind of alignment, or the import path of a custom one."""
    dim: int = Field(128, ge=8, le=8192)
    """Width of aligned vectors, the same for all inputs."""
    standardize: bool = False
    """Standardize the encoder's outputs to mean 0 and standard deviation 1 in every dimension, with the statistics of
    the training rows when training starts. For encoders whose vectors have a large mean in common."""
    loss: AlignLossConfigs = Field(default_factory=list)
    """Auxiliary losses that pull the inputs of a row together: one, or a list of several."""

    @property
    def tokens_per_value(self) -> int | None:
        """Tokens that it outputs for each value; None for as many as the encoder does."""
        return None


class LinearAlignConfig(BaseAlignConfig):
    """A linear map and a layer norm per input."""

    type: Literal["linear"] = "linear"
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout rate on the inputs of the map."""
    norm: bool = True
    """Apply a layer norm after the map."""


class MLPAlignConfig(BaseAlignConfig):
    """A multilayer perceptron and a layer norm per input, applied to each token."""

    type: Literal["mlp"]
    hidden: int = Field(256, ge=8, le=16384)
    """Width of the hidden layers."""
    layers: int = Field(2, ge=2, le=8)
    """Number of linear maps."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate after each hidden layer."""


class TransformerAlignConfig(BaseAlignConfig):
    """Learned queries that read each input by cross-attention; every input becomes the same number of tokens.

    As in the Perceiver (Jaegle et al., 2021) and the Q-Former of BLIP-2 (Li et al., 2023).
    """

    preserves_positions: ClassVar[bool] = False

    type: Literal["transformer"]
    num_queries: int = Field(4, ge=1, le=256)
    """Learned queries per input, and so the number of tokens that each value becomes."""
    layers: int = Field(1, ge=1, le=24)
    """Number of transformer layers."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they must divide `dim`."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout rate in each layer."""

    @property
    def tokens_per_value(self) -> int:
        return self.num_queries

    def validate_in_job(self, job: "Job") -> Problems:
        if self.dim % self.heads:
            yield "heads", f"{self.heads} does not divide dim {self.dim}; use a divisor of {self.dim}"


class IdentityAlignConfig(BaseAlignConfig):
    """No projection: the encoder's outputs must be `dim` wide."""

    trainable: ClassVar[bool] = False

    type: Literal["identity"]


class CustomAlignConfig(CustomConfig, BaseAlignConfig):
    """A subclass of rayfuse.model.alignment.Alignment, by import path."""

    base_class: ClassVar[str] = "rayfuse.model.alignment.base:Alignment"


AlignConfig = Annotated[BaseAlignConfig, PartOf(lambda: ALIGNMENTS)]
"""Any alignment; `linear` if no type is given."""

ALIGNMENTS: Family[BaseAlignConfig] = Family(
    "alignment",
    {
        LinearAlignConfig: "rayfuse.model.alignment.linear:LinearAlignment",
        MLPAlignConfig: "rayfuse.model.alignment.mlp:MLPAlignment",
        TransformerAlignConfig: "rayfuse.model.alignment.transformer:TransformerAlignment",
        IdentityAlignConfig: "rayfuse.model.alignment.identity:IdentityAlignment",
    },
    custom=CustomAlignConfig,
    default="linear",
)
"""The built-in alignments."""
