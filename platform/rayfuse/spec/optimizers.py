"""Optimizers, and rates of chosen parameters."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block

Betas = tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]


class AdamW(Block):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019)."""

    type: Literal["adamw"] = "adamw"
    lr: float = Field(1.0e-3, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: Betas = (0.9, 0.999)
    """How much of the averages of gradients and of their squares stays at each step."""
    eps: float = Field(1.0e-8, gt=0)
    """Added to the root of the second moment; gradients far below it move a weight little."""


class SGD(Block):
    """Stochastic gradient descent with momentum (Sutskever et al., 2013)."""

    type: Literal["sgd"]
    lr: float = Field(0.01, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False
    """Look ahead along the momentum."""

    @model_validator(mode="after")
    def _momentum_to_look_along(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise PydanticCustomError(
                "sgd", "looks ahead along a momentum of 0; give a momentum", {"path": "nesterov"}
            )
        return self


class Adafactor(Block):
    """Second moments as a row and a column for each matrix (Shazeer and Stern, 2018): little memory."""

    type: Literal["adafactor"]
    lr: float = Field(0.01, gt=0)
    """Relative to the root mean square of each weight, and at most one over the root of the step."""
    weight_decay: float = Field(0.0, ge=0)
    beta2_decay: float = Field(-0.8, lt=0)
    """Power of the step that says how fast old squares are forgotten."""
    clip: float = Field(1.0, ge=1)
    """Largest root mean square of an update before its rate."""


class Lion(Block):
    """The sign of a momentum (Chen et al., 2023): half of Adam's memory; wants 3 to 10 times less rate, more decay."""

    type: Literal["lion"]
    lr: float = Field(1.0e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: Betas = (0.9, 0.99)
    """How much of the momentum is in the update, and how much of it stays at each step."""


class Muon(Block):
    """Orthogonalised momentum for matrices (Jordan et al., 2024), AdamW for all else.

    Embeddings, task heads, convolutions and vectors are all else. Updates have the size of AdamW's (Liu et al., 2025),
    so that one rate suits both.
    """

    type: Literal["muon"]
    lr: float = Field(1.0e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    momentum: float = Field(0.95, ge=0, lt=1)
    nesterov: bool = True
    betas: Betas = (0.9, 0.95)
    """Of AdamW."""
    eps: float = Field(1.0e-8, gt=0)
    """Of AdamW."""


def _adamw_unless_said(value: Any) -> str:
    """Discriminator: a block without a type is AdamW."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return str(given or "adamw")


Optimizer = Annotated[
    Annotated[AdamW, Tag("adamw")]
    | Annotated[SGD, Tag("sgd")]
    | Annotated[Adafactor, Tag("adafactor")]
    | Annotated[Lion, Tag("lion")]
    | Annotated[Muon, Tag("muon")],
    Discriminator(_adamw_unless_said),
]

_NEEDS_WHOLE_WEIGHTS = {
    "adafactor": "scales its steps by rows, columns and the size of whole weights",
    "muon": "orthogonalises whole matrices",
}


def refusal(optimizer: Any, stage: int) -> str | None:
    """Why an optimizer cannot work under a ZeRO stage; None where it can."""
    reason = _NEEDS_WHOLE_WEIGHTS.get(optimizer.type)
    if reason is None or stage == 0:
        return None
    return (
        f"{optimizer.type} {reason}, and ZeRO stage {stage} hands each worker flat parts of them; "
        "use train.deepspeed.stage 0, or adamw, sgd or lion"
    )


class ParameterGroup(Block):
    """Rates of the trained parameters whose names match a pattern."""

    match: str = Field(min_length=1)
    """Pattern over names of parameters, such as `encoders.text.*` or `*.embeddings.*`; `*` also matches dots."""
    lr: float | None = Field(None, gt=0)
    """In the place of the optimizer's rate, and of the encoder's `lr` and `layer_decay`."""
    weight_decay: float | None = Field(None, ge=0)
    """In the place of the optimizer's; norms, biases and other vectors never decay."""

    @model_validator(mode="after")
    def _says_something(self) -> "ParameterGroup":
        if self.lr is None and self.weight_decay is None:
            raise PydanticCustomError("group", "changes nothing; give lr, weight_decay or both", {})
        return self
