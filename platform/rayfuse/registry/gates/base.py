"""What a gate sees and says. Gates decide; measuring and moving aliases happen elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rayfuse.registry.versions import Version


@dataclass(frozen=True)
class Measured:
    """Numbers of a model on the rows that it is judged on."""

    metrics: Mapping[str, float]
    by_inputs: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Case:
    """A candidate, the champion if there is one, and a way to measure the champion on the candidate's rows."""

    candidate: Version
    champion: Version | None = None
    measure_champion: Callable[[], Measured] | None = None


@dataclass(frozen=True)
class Verdict:
    """What a gate found."""

    gate: str
    passed: bool
    reason: str
    """Which number missed which bound, or why it passed."""
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Gate(Protocol):
    """Judges whether a candidate may become champion."""

    def judge(self, case: Case) -> Verdict: ...
