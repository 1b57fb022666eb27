"""Gates: rules that a candidate model must pass to become champion."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rayfuse.spec.base import SpecModel
from rayfuse.spec.family import CustomConfig, Family, PartOf


class BaseGateConfig(SpecModel):
    """Options of every gate."""

    type: str
    """Kind of gate, or the import path of a custom one."""


class MetricThresholdConfig(BaseGateConfig):
    """Each metric of the candidate must reach its threshold."""

    type: Literal["metric_threshold"] = "metric_threshold"
    thresholds: Annotated[dict[str, float], Field(min_length=1)]
    """TASK/METRIC → threshold: a minimum, or a maximum for a metric whose lower values are better."""


class NoRegressionConfig(BaseGateConfig):
    """The candidate may not be worse than the champion, on all inputs and on every subset that a request may contain."""

    type: Literal["no_regression"] = "no_regression"
    tolerance: float = Field(0.01, ge=0)
    """Largest allowed regression of the candidate, in units of the metric that selects its checkpoint."""


class CustomGateConfig(CustomConfig, BaseGateConfig):
    """A subclass of rayfuse.registry.gates.Gate, by import path."""

    base_class: ClassVar[str] = "rayfuse.registry.gates.base:Gate"


GateConfig = Annotated[BaseGateConfig, PartOf(lambda: GATES)]
"""Any gate."""

GATES: Family[BaseGateConfig] = Family(
    "gate",
    {
        MetricThresholdConfig: "rayfuse.registry.gates.metric_threshold:MetricThreshold",
        NoRegressionConfig: "rayfuse.registry.gates.no_regression:NoRegression",
    },
    custom=CustomGateConfig,
)
"""The built-in gates."""
