"""Thresholds for the candidate's metrics."""

from rayfuse.errors import SpecError
from rayfuse.registry.gates.base import Gate, GateContext, GateResult
from rayfuse.spec.error_messages import suggest_nearest
from rayfuse.spec.gates import MetricThresholdConfig


class MetricThreshold(Gate):
    """Each metric must reach its threshold; one whose lower values are better (loss, mae, rmse) must not exceed it."""

    options: MetricThresholdConfig

    def evaluate(self, context: GateContext) -> GateResult:
        """Compare each metric with its threshold. Raises SpecError for a metric that the candidate does not report."""
        measured, thresholds = context.candidate.evaluation_metrics, self.options.thresholds
        misses = []
        for metric, bound in thresholds.items():
            if metric not in measured:
                known = suggest_nearest(metric, list(measured)) if measured else "it has no metrics"
                raise SpecError(
                    f"--min {metric}: not a metric of version {context.candidate.version}; {known}"
                )
            value, at_most = measured[metric], context.candidate.metric_modes.get(metric) == "min"
            if not (value <= bound if at_most else value >= bound):  # so that NaN misses every bound
                misses.append(f"{metric} {value:.4f} is {'above' if at_most else 'below'} {bound:g}")
        details = {
            metric: {"value": measured[metric], "bound": bound} for metric, bound in thresholds.items()
        }
        met = [f"{metric} {measured[metric]:.4f} (bound {bound:g})" for metric, bound in thresholds.items()]
        reason = f"{', '.join(misses or met)} on the {context.candidate.split} rows"
        return GateResult(self.options.type, not misses, reason, details)
