"""Gates: rules that a candidate model must pass to become champion."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rayfuse.errors import SpecError
from rayfuse.registry.gates.base import Gate, GateContext, GateResult, ModelMetrics
from rayfuse.registry.gates.metric_threshold import MetricThreshold
from rayfuse.registry.gates.no_regression import NoRegression
from rayfuse.spec.error_messages import TOP_LEVEL, format_errors
from rayfuse.spec.gates import GATES, BaseGateConfig, GateConfig


def build_gate(options: GateConfig) -> Gate:
    """Build a gate. Raises SpecError if a custom class cannot be loaded."""
    gate: Gate = GATES.build(options)
    return gate


def default_gates(
    thresholds: Mapping[str, float], tolerance: float, gates: Sequence[BaseGateConfig] = ()
) -> list[Gate]:
    """Build the gates of a promotion: metric thresholds if there are any, no regression, and those of `gates`.

    One of `gates` replaces the first two if it has the same type. Raises SpecError for invalid values.
    """
    chosen = [parse_gate({"type": "no_regression", "tolerance": tolerance})]
    if thresholds:
        chosen.insert(0, parse_gate({"type": "metric_threshold", "thresholds": dict(thresholds)}))
    given = {gate.type for gate in gates}
    return [build_gate(gate) for gate in [*(gate for gate in chosen if gate.type not in given), *gates]]


def parse_gate(gate: str | Mapping[str, Any]) -> BaseGateConfig:
    """Parse a gate: its type, the import path of a custom one, or a block, which may be JSON. Raises SpecError."""
    block: Any = gate
    try:
        if isinstance(gate, str):
            block = json.loads(gate) if gate.lstrip().startswith("{") else {"type": gate}
    except json.JSONDecodeError as error:
        raise SpecError(f"gate {gate}: not JSON: {error.msg} at character {error.pos}") from None
    try:
        config: BaseGateConfig = TypeAdapter(GateConfig).validate_python(block)
    except ValidationError as error:
        raise SpecError(
            "\n".join(
                f"gate {gate}: {line.removeprefix(f'{TOP_LEVEL}: ')}"
                for line in format_errors(error, GateConfig)
            )
        ) from None
    return config


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
]
