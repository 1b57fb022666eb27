"""A gate: robustness to missing inputs."""

from pydantic import Field

from rayfuse.registry.gates import Gate, GateContext, GateResult
from rayfuse.spec.base import SpecModel


class Robustness(Gate):
    """The selection metric may not be worse by more than `max_drop` with any subset of the inputs."""

    class Options(SpecModel):
        max_drop: float = Field(0.1, ge=0)
        """Largest difference from the metric on all inputs."""

    options: Options

    def evaluate(self, context: GateContext) -> GateResult:
        candidate = context.candidate
        metric, sign = candidate.selection_metric, 1 if candidate.mode == "max" else -1
        drops = {
            subset: sign * (candidate.evaluation_metrics[metric] - metrics[metric])
            for subset, metrics in candidate.by_inputs.items()
        }
        largest = max(drops.values(), default=0.0)
        reason = f"{metric} drops by {largest:.2f} without an input (at most {self.options.max_drop:g})"
        return GateResult("robustness", largest <= self.options.max_drop, reason, drops)
