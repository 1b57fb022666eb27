"""Gates that a candidate must pass to become champion. A new one is a file here and a line in GATES."""

from collections.abc import Mapping

from rayfuse.registry.gates.base import Case, Gate, Measured, Verdict
from rayfuse.registry.gates.minimum import Minimum, read_bounds
from rayfuse.registry.gates.not_worse import NotWorse

GATES: dict[str, type[Gate]] = {
    "minimum": Minimum,
    "not_worse": NotWorse,
}


def default_gates(bounds: Mapping[str, float], tolerance: float) -> list[Gate]:
    """The gates of every promotion: `bounds` that the candidate's metrics must reach, and the champion."""
    return [Minimum(bounds), NotWorse(tolerance)] if bounds else [NotWorse(tolerance)]


__all__ = [
    "GATES",
    "Case",
    "Gate",
    "Measured",
    "Minimum",
    "NotWorse",
    "Verdict",
    "default_gates",
    "read_bounds",
]
