"""Gates: rules that a candidate model must pass to become champion."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayfuse.errors import SpecError
from rayfuse.registry.gates.base import Gate, GateContext, GateResult, ModelMetrics
from rayfuse.registry.gates.metric_threshold import MetricThreshold
from rayfuse.registry.gates.no_regression import NoRegression
from rayfuse.spec.error_messages import format_errors
from rayfuse.spec.gates import (
    GATES,
    BaseGateConfig,
    GateConfig,
    MetricThresholdConfig,
    NoRegressionConfig,
)


def build_gate(options: GateConfig) -> Gate:
    """Build a gate. Raises SpecError if a custom class cannot be loaded."""
    gate: Gate = GATES.build(options)
    return gate


def default_gates(
    thresholds: Mapping[str, float], tolerance: float, gates: Sequence[BaseGateConfig] = ()
) -> list[Gate]:
    """Build the gates of a promotion: metric thresholds if there are any, no regression, and those of `gates`.

    One of `gates` replaces the first two if it has the same type.
    """
    chosen: list[BaseGateConfig] = [NoRegressionConfig(tolerance=tolerance)]
    if thresholds:
        chosen.insert(0, MetricThresholdConfig(thresholds=dict(thresholds)))
    given = {gate.type for gate in gates}
    return [build_gate(gate) for gate in [*(gate for gate in chosen if gate.type not in given), *gates]]


def parse_gate(text: str) -> BaseGateConfig:
    """Parse a gate: its type, the import path of a custom one, or a JSON block. Raises SpecError if it is invalid."""
    try:
        block: Any = json.loads(text) if text.lstrip().startswith("{") else {"type": text}
    except json.JSONDecodeError as error:
        raise SpecError(f"--gate {text}: not JSON: {error.msg} at character {error.pos}") from None
    try:
        gate: BaseGateConfig = TypeAdapter(GateConfig).validate_python(block)
    except ValidationError as error:
        raise SpecError(
            "\n".join(f"--gate {text}: {line}" for line in format_errors(error, GateConfig))
        ) from None
    return gate


def parse_thresholds(texts: Iterable[str]) -> dict[str, float]:
    """Parse `("answer/accuracy=0.9", …)` to thresholds by metric. Raises SpecError if a text is invalid."""
    thresholds: dict[str, float] = {}
    for text in texts:
        metric, _, threshold = text.partition("=")
        try:
            thresholds[metric] = float(threshold)
        except ValueError:
            raise SpecError(f"--min {text}: write --min METRIC=BOUND, as in answer/accuracy=0.9") from None
    return thresholds


__all__ = [
    "Gate",
    "GateContext",
    "GateResult",
    "MetricThreshold",
    "ModelMetrics",
    "NoRegression",
    "build_gate",
    "default_gates",
    "parse_gate",
    "parse_thresholds",
]
