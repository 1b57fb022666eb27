"""Options that encoders share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.base import JobSection, Problems
from rayfuse.spec.family import CustomConfig

if TYPE_CHECKING:
    from rayfuse.spec.job import Job

Pool = Literal["mean", "first", "last", "max", "attention", "none"]
"""Pooling of tokens to one vector: their mean, first, last or maximum, or a mean with learned weights (`attention`).

`none` passes all tokens to the fusion. Padding is ignored.
"""


class BaseEncoderConfig(JobSection):
    """Options of every encoder."""

    reads_waveforms: ClassVar[bool] = False
    """True if an encoder of audio can read waveforms."""

    type: str
    """Kind of encoder, or the import path of a custom one."""
    lr: float | None = Field(None, gt=0)
    """Learning rate of this encoder; by default the optimizer's."""

    @property
    def frozen(self) -> bool:
        """True if nothing of it is trained, so that its output for a value never changes."""
        return False

    @property
    def frozen_part(self) -> "BaseEncoderConfig | None":
        """The part whose output for a value never changes: itself if it is frozen, or an encoder inside it; None for none."""
        return self if self.frozen else None

    @property
    def running_part(self) -> "BaseEncoderConfig | None":
        """The part that still runs on every value if the outputs of `frozen_part` are cached; None for none."""
        return None if self.frozen else self

    @property
    def outputs_tokens(self) -> bool:
        """True if a value may become more than one token."""
        return getattr(self, "pool", "mean") == "none"

    @property
    def fit_options(self) -> dict[str, Any]:
        """The options that decide what is fitted on the training rows; empty if nothing is."""
        return {}

    def with_fitted(self, fitted: "BaseEncoderConfig") -> "BaseEncoderConfig":
        """Return these options with what `fitted`, an encoder with the same `fit_options`, learned from the rows."""
        return self

    @property
    def inner_encoders(self) -> Mapping[str, "BaseEncoderConfig"]:
        """The encoders that it contains, by their field."""
        return {}


class LayeredEncoderConfig(BaseEncoderConfig):
    """Options of an encoder with a stack of layers, whose learning rates may decay from top to bottom."""

    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate per layer below the last, so that the layers pretraining learned first change least
    (ELECTRA, Clark et al., 2020; BEiT, Bao et al., 2022). 1: the same rate for all layers."""


class CustomEncoderConfig(CustomConfig, LayeredEncoderConfig):
    """A subclass of rayfuse.model.encoders.Encoder, by import path."""

    base_class: ClassVar[str] = "rayfuse.model.encoders.base:Encoder"
    reads_waveforms: ClassVar[bool] = True

    train: Literal["frozen"] | None = None
    """`frozen`: nothing of it is trained, it runs in evaluation mode, and its outputs are cached. By default the class
    decides what is trained."""

    @property
    def frozen(self) -> bool:
        return self.train == "frozen"

    @property
    def outputs_tokens(self) -> bool:
        return True

    def validate_in_job(self, job: "Job") -> Problems:
        if self.frozen and self.layer_decay != 1:
            yield (
                "layer_decay",
                f"{self.layer_decay:g} has no effect on a frozen encoder; leave layer_decay out, or leave `train` out",
            )


class MultiHeadEncoderConfig(BaseEncoderConfig):
    """Options of an encoder with attention."""

    hidden_size: int = Field(64, ge=8, le=4096)
    """Width of every token; a multiple of 4."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; they must divide `hidden_size`."""

    def validate_in_job(self, job: "Job") -> Problems:
        if self.hidden_size % self.heads:
            yield "heads", f"{self.heads} does not divide hidden_size {self.hidden_size}; use a divisor of it"
        elif self.hidden_size % 4:
            yield "hidden_size", f"{self.hidden_size} is not a multiple of 4; use one"
