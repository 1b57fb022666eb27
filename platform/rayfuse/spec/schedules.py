"""How the learning rate goes over the steps: all schedules begin with a warm-up."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Block, Share, share


def _steps_or_share(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else share(value)


def _at_most_all(value: int | float) -> int | float:
    if isinstance(value, float) and value > 1:
        raise PydanticCustomError(
            "warmup", "not a share; write a whole number for steps, 0.05 or 5% for a share"
        )
    return value


Warmup = Annotated[
    int | float,
    Field(ge=0),
    BeforeValidator(_steps_or_share),
    AfterValidator(_at_most_all),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}], "examples": ["5%", 0.05, 500]}
    ),
]
"""A share of all steps (0.05 or 5%), or a whole number of them."""


class _Schedule(Block):
    warmup: Warmup = 0.05
    """Steps, or share of all steps, in which the rate rises linearly from zero."""


class _Falling(_Schedule):
    min: float = Field(0.0, ge=0, lt=1)
    """Factor of the rate that the last steps fall to."""


class Cosine(_Falling):
    """Falls along half a cosine (Loshchilov and Hutter, 2017)."""

    type: Literal["cosine"] = "cosine"


class Linear(_Falling):
    """Falls on a straight line."""

    type: Literal["linear"]


class Constant(_Schedule):
    """Stays."""

    type: Literal["constant"]


class WSD(_Falling):
    """Warm-up, stable, decay (Hu et al., 2024): stays, and falls in the last steps alone."""

    type: Literal["wsd"]
    decay: Share = 0.1
    """Share of all steps in which the rate falls."""
    form: Literal["sqrt", "linear", "cosine"] = "sqrt"
    """How it falls; `sqrt`: with one minus the root of the way (Hägele et al., 2024)."""

    @model_validator(mode="after")
    def _fits(self) -> "WSD":
        if isinstance(self.warmup, float) and self.warmup + self.decay > 1:
            raise PydanticCustomError(
                "wsd",
                "warmup {warmup} and decay {decay} together are more than all steps; lower one",
                {"warmup": self.warmup, "decay": self.decay, "path": "decay"},
            )
        return self


def _cosine_unless_said(value: Any) -> str:
    """Discriminator: a block without a type is cosine."""
    given = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return str(given or "cosine")


Schedule = Annotated[
    Annotated[Cosine, Tag("cosine")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Constant, Tag("constant")]
    | Annotated[WSD, Tag("wsd")],
    Discriminator(_cosine_unless_said),
]
