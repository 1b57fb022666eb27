"""Simulation of batches that are too large to be built: their cost is extrapolated from that of smaller ones."""

from collections.abc import Callable
from typing import TypeVar

from rayfuse.estimate.memory_tracker import MemoryPeak
from rayfuse.estimate.simulation import Simulation, StepEstimate
from rayfuse.estimate.synthetic_batch import features_bytes

T = TypeVar("T")

MAX_BATCH_BYTES = 128_000_000
"""Bytes of the largest batch that is built; the rest of a simulation takes no memory."""


class ScalableSimulation:
    """A simulation whose batches may be of any size; the costs of a step are linear in its rows."""

    def __init__(self, simulation: Simulation, max_batch_bytes: int = MAX_BATCH_BYTES) -> None:
        """Build batches of at most `max_batch_bytes`, or of two rows."""
        self._simulation = simulation
        self._max_rows = max(2, max_batch_bytes // max(1, features_bytes(simulation.job)))

    def simulate_step(self, rows: int) -> StepEstimate:
        """Simulate forward and backward of a micro-batch, as `Simulation.simulate_step`."""
        if rows <= self._max_rows:
            return self._simulation.simulate_step(rows)
        (few, low), (many, high) = self._two_sizes(self._simulation.simulate_step)

        def scale(cost: Callable[[StepEstimate], int]) -> int:
            return _extrapolate(few, cost(low), many, cost(high), rows)

        return StepEstimate(
            rows,
            scale(lambda step: step.saved_activations),
            MemoryPeak(
                scale(lambda step: step.peak_activations.activations),
                scale(lambda step: step.peak_activations.gradients),
            ),
            MemoryPeak(
                scale(lambda step: step.peak_total.activations), scale(lambda step: step.peak_total.gradients)
            ),
            scale(lambda step: step.flops),
            high.num_operations,
        )

    def simulate_evaluation(self, rows: int) -> int:
        """Return the peak bytes of a forward pass without gradients, as `Simulation.simulate_evaluation`."""
        if rows <= self._max_rows:
            return self._simulation.simulate_evaluation(rows)
        (few, low), (many, high) = self._two_sizes(self._simulation.simulate_evaluation)
        return _extrapolate(few, low, many, high, rows)

    def _two_sizes(self, simulate: Callable[[int], T]) -> tuple[tuple[int, T], tuple[int, T]]:
        few, many = self._max_rows // 2, self._max_rows
        return (few, simulate(few)), (many, simulate(many))


def _extrapolate(few: int, low: int, many: int, high: int, rows: int) -> int:
    return max(high, round(low + (high - low) * (rows - few) / (many - few)))
