"""Base class of gates, their context and their result."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rayfuse.registry.versions import ModelVersion


@dataclass(frozen=True)
class ModelMetrics:
    """Metrics of a model on the rows that the candidate was evaluated on."""

    metrics: Mapping[str, float]
    """Metrics on all inputs."""
    by_inputs: Mapping[str, Mapping[str, float]]
    """Metrics by subset of the inputs."""


@dataclass(frozen=True)
class GateContext:
    """A candidate, the champion if there is one, and a function that evaluates the champion on the candidate's rows."""

    candidate: ModelVersion
    """The version that is to become champion."""
    champion: ModelVersion | None = None
    """The current champion."""
    evaluate_champion: Callable[[], ModelMetrics] | None = None
    """Evaluates the champion on the candidate's rows, which takes a while."""


@dataclass(frozen=True)
class GateResult:
    """Result of a gate."""

    gate: str
    """Type of the gate."""
    passed: bool
    """True if the candidate passed."""
    reason: str
    """The metrics that missed a bound, or why it passed."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """Values behind the decision: plain JSON values."""


class Gate(ABC):
    """A rule that a candidate must pass to become champion.

    options: the spec model of a built-in gate; the `Options` of a custom one, or the mapping of the spec.
    """

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def evaluate(self, context: GateContext) -> GateResult:
        """Decide whether the candidate passes. Raises SpecError if it cannot be decided."""
