"""Learning rate schedules: all of them start with a linear warm-up."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from rayfuse.spec.base import Fraction, SpecModel, parse_fraction
from rayfuse.spec.family import CustomConfig, Family, PartOf


def _parse_steps_or_fraction(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) else parse_fraction(value)


def _check_fraction(value: int | float) -> int | float:
    if isinstance(value, float) and value > 1:
        raise PydanticCustomError(
            "steps", "not a fraction; write an integer for steps, or 0.05 or 5% for a fraction of them"
        )
    return value


StepsOrFraction = Annotated[
    int | float,
    Field(ge=0),
    BeforeValidator(_parse_steps_or_fraction),
    AfterValidator(_check_fraction),
    WithJsonSchema(
        {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}], "examples": ["5%", 0.05, 500]}
    ),
]
"""A fraction of all steps (0.05 or 5%), or an integer number of them."""


class BaseScheduleConfig(SpecModel):
    """Options of every schedule."""

    type: str
    """Kind of schedule, or the import path of a custom one."""
    warmup: StepsOrFraction = 0.05
    """Steps, or fraction of all steps, in which the learning rate rises linearly from zero."""


class DecayScheduleConfig(BaseScheduleConfig):
    """Options of a schedule in which the learning rate decays."""

    min_lr_ratio: float = Field(0.0, ge=0, lt=1)
    """Ratio of the final learning rate to the optimizer's."""


class CosineScheduleConfig(DecayScheduleConfig):
    """Cosine decay (Loshchilov and Hutter, 2017)."""

    type: Literal["cosine"] = "cosine"


class LinearScheduleConfig(DecayScheduleConfig):
    """Linear decay."""

    type: Literal["linear"]


class ConstantScheduleConfig(BaseScheduleConfig):
    """No decay."""

    type: Literal["constant"]


class WSDScheduleConfig(DecayScheduleConfig):
    """Warm-up, stable, decay (Hu et al., 2024): constant, with a decay in the last steps."""

    type: Literal["wsd"]
    decay_ratio: Fraction = 0.1
    """Fraction of all steps in which the learning rate decays."""
    decay_shape: Literal["sqrt", "linear", "cosine"] = "sqrt"
    """Shape of the decay; `sqrt`: one minus the root of the progress (Hägele et al., 2024)."""

    @model_validator(mode="after")
    def _check_total_steps(self) -> "WSDScheduleConfig":
        if isinstance(self.warmup, float) and self.warmup + self.decay_ratio > 1:
            raise PydanticCustomError(
                "wsd",
                "{decay} and warmup {warmup} add up to more than 1; lower one",
                {"warmup": self.warmup, "decay": self.decay_ratio, "path": "decay_ratio"},
            )
        return self


class CustomScheduleConfig(CustomConfig, BaseScheduleConfig):
    """A subclass of rayfuse.training.schedule.Schedule, by import path."""

    base_class: ClassVar[str] = "rayfuse.training.schedule:Schedule"


ScheduleConfig = Annotated[BaseScheduleConfig, PartOf(lambda: SCHEDULES)]
"""Any schedule; `cosine` if no type is given."""

SCHEDULES: Family[BaseScheduleConfig] = Family(
    "schedule",
    {
        CosineScheduleConfig: "rayfuse.training.schedule:Cosine",
        LinearScheduleConfig: "rayfuse.training.schedule:Linear",
        ConstantScheduleConfig: "rayfuse.training.schedule:Constant",
        WSDScheduleConfig: "rayfuse.training.schedule:WarmupStableDecay",
    },
    custom=CustomScheduleConfig,
    default="cosine",
)
"""The built-in schedules."""
