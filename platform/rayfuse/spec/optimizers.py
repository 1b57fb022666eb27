"""Optimizers, and learning rates of chosen parameters."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import SpecModel
from rayfuse.spec.family import CustomConfig, Family, PartOf
from rayfuse.spec.schedules import StepsOrFraction

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class BaseOptimizerConfig(SpecModel):
    """Options of every optimizer."""

    unsharded_weights_reason: ClassVar[str | None] = None
    """Reason to reject ZeRO stages above 0, which shard weights; None if it works with them."""
    separates_matrices: ClassVar[bool] = False
    """True if its parameter groups are split by their `matrix`: inner weights of two dimensions, and all others."""

    type: str
    """Kind of optimizer, or the import path of a custom one."""
    lr: float = Field(1.0e-3, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay of matrices; vectors, such as norms and biases, do not decay."""


class AdamWConfig(BaseOptimizerConfig):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    betas: Betas = (0.9, 0.999)
    """Decay rates of the averages of gradients and of squared gradients."""
    eps: float = Field(1.0e-8, gt=0)
    """Added to the root of the second moment, for numerical stability."""


class SGDConfig(BaseOptimizerConfig):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""

    type: Literal["sgd"]
    lr: float = Field(0.01, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices; vectors do not decay."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Decay rate of the momentum."""
    nesterov: bool = False
    """Use Nesterov momentum."""

    @model_validator(mode="after")
    def _check_nesterov(self) -> "SGDConfig":
        if self.nesterov and not self.momentum:
            raise PydanticCustomError(
                "sgd",
                "true needs a momentum above 0; set momentum, or leave nesterov out",
                {"path": "nesterov"},
            )
        return self


class AdafactorConfig(BaseOptimizerConfig):
    """Adafactor: second moments factored to a row and a column per matrix, for little memory (Shazeer and Stern, 2018)."""

    unsharded_weights_reason: ClassVar[str | None] = (
        "adafactor scales its steps by rows, columns and the norm of whole weights"
    )

    type: Literal["adafactor"]
    lr: float = Field(0.01, gt=0)
    """Learning rate relative to the root mean square of each weight; at most one over the root of the step."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of matrices; vectors do not decay."""
    beta2_decay: float = Field(-0.8, lt=0)
    """Exponent of the step in the decay rate of squared gradients."""
    clip_threshold: float = Field(1.0, ge=1)
    """Largest root mean square of an update before the learning rate."""


class LionConfig(BaseOptimizerConfig):
    """Lion: the sign of a momentum (Chen et al., 2023), with half of Adam's memory.

    It needs a learning rate 3 to 10 times lower than AdamW, and more weight decay.
    """

    type: Literal["lion"]
    lr: float = Field(1.0e-4, gt=0)
    """Learning rate after the warm-up."""
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices; vectors do not decay."""
    betas: Betas = (0.9, 0.99)
    """Weight of the momentum in the update, and decay rate of the momentum."""


class MuonConfig(BaseOptimizerConfig):
    """Muon: orthogonalized momentum for inner matrices (Jordan et al., 2024), AdamW for all other parameters.

    Embeddings, task heads, convolutions and vectors use AdamW. Updates are scaled to the size of AdamW's (Liu et al.,
    2025), so that one learning rate suits both.
    """

    unsharded_weights_reason: ClassVar[str | None] = "muon orthogonalizes whole matrices"
    separates_matrices: ClassVar[bool] = True

    type: Literal["muon"]
    weight_decay: float = Field(0.1, ge=0)
    """Weight decay of matrices; vectors do not decay."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay rate of Muon's momentum."""
    nesterov: bool = True
    """Use Nesterov momentum."""
    betas: Betas = (0.9, 0.95)
    """AdamW's decay rates of the averages of gradients and of squared gradients."""
    eps: float = Field(1.0e-8, gt=0)
    """AdamW's constant for numerical stability."""


class CustomOptimizerConfig(CustomConfig, BaseOptimizerConfig):
    """A subclass of rayfuse.training.optimizers.Optimizer, by import path."""

    base_class: ClassVar[str] = "rayfuse.training.optimizers:Optimizer"


OptimizerConfig = Annotated[BaseOptimizerConfig, PartOf(lambda: OPTIMIZERS)]
"""Any optimizer; `adamw` if no type is given."""

OPTIMIZERS: Family[BaseOptimizerConfig] = Family(
    "optimizer",
    {
        AdamWConfig: "rayfuse.training.optimizers:AdamW",
        SGDConfig: "rayfuse.training.optimizers:SGD",
        AdafactorConfig: "rayfuse.training.optimizers:Adafactor",
        LionConfig: "rayfuse.training.optimizers:Lion",
        MuonConfig: "rayfuse.training.optimizers:Muon",
    },
    custom=CustomOptimizerConfig,
    default="adamw",
)
"""The built-in optimizers."""


def zero_incompatibility(optimizer: BaseOptimizerConfig, stage: int) -> str | None:
    """Return why an optimizer cannot be used under a ZeRO stage; None if it can."""
    if optimizer.unsharded_weights_reason is None or stage == 0:
        return None
    return (
        f"{optimizer.unsharded_weights_reason}, and ZeRO stage {stage} shards them; "
        "use train.deepspeed.stage 0, or adamw, sgd or lion"
    )


class ParamGroupConfig(SpecModel):
    """Learning rate, weight decay and span of the trained parameters whose names match a pattern."""

    pattern: str = Field(min_length=1)
    """Pattern for names of parameters, such as `encoders.text.*` or `*.embeddings.*`; `*` also matches dots."""
    lr: float | None = Field(None, gt=0)
    """Learning rate instead of the optimizer's, and of the encoder's `lr` and `layer_decay`."""
    weight_decay: float | None = Field(None, ge=0)
    """Weight decay instead of the optimizer's; norms, biases and other vectors do not decay."""
    start: StepsOrFraction = 0
    """Steps, or fraction of all steps, before they are trained."""
    end: StepsOrFraction = 1.0
    """Step, or fraction of all steps, from which on they are frozen."""

    @model_validator(mode="after")
    def _check(self) -> "ParamGroupConfig":
        is_whole = self.start == 0 and type(self.end) is float and self.end == 1.0
        if self.lr is None and self.weight_decay is None and is_whole:
            raise PydanticCustomError("group", "changes nothing; set lr, weight_decay, start or end", {})
        if type(self.start) is type(self.end) and self.end <= self.start:
            raise PydanticCustomError(
                "group",
                "{end} is not after start {start}; raise it, or lower start",
                {"end": f"{self.end:g}", "start": f"{self.start:g}", "path": "end"},
            )
        return self
