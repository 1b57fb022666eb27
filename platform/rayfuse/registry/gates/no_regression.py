"""Comparison of the candidate with the champion, on all inputs and on every subset that a request may contain."""

from collections.abc import Mapping
from typing import Any

from rayfuse.errors import RayfuseError
from rayfuse.registry.gates.base import Gate, GateContext, GateResult, ModelMetrics
from rayfuse.registry.versions import VOICE_KIND, ModelVersion
from rayfuse.spec.gates import NoRegressionConfig

ALL_INPUTS = "all inputs"
"""Name of the rows with all their inputs."""


class NoRegression(Gate):
    """The candidate's selection metric may not be worse than the champion's by more than the tolerance.

    Subsets without a required input are recorded, but do not count: no request is without it, and differences between
    metrics near chance level are noise.
    """

    options: NoRegressionConfig

    def evaluate(self, context: GateContext) -> GateResult:
        """Compare both on each subset; passes if there is no champion."""
        candidate, champion = context.candidate, context.champion
        if champion is None:
            return self._result(True, "no champion yet")
        if candidate.kind == VOICE_KIND:
            return self._result(True, "voices have no metrics to compare")
        try:
            before, source = _champion_metrics(context, champion)
        except RayfuseError as error:
            return self._result(
                False,
                f"the champion (version {champion.version}) cannot be evaluated on the candidate's rows: {error}",
            )
        metric = candidate.selection_metric
        old = _metric_by_subset(before, metric)
        new = _metric_by_subset(ModelMetrics(candidate.evaluation_metrics, candidate.by_inputs), metric)
        if ALL_INPUTS not in old or ALL_INPUTS not in new:
            who = f"the champion (version {champion.version})" if ALL_INPUTS in new else "the candidate"
            return self._result(False, f"{who} does not report {metric}, so the two cannot be compared")
        return self._compare(candidate, new, old, source)

    def _compare(
        self, candidate: ModelVersion, new: Mapping[str, float], old: Mapping[str, float], source: str
    ) -> GateResult:
        metric, tolerance = candidate.selection_metric, self.options.tolerance
        sign = 1 if candidate.mode == "max" else -1
        common = [name for name in new if name in old]
        gated = [
            name
            for name in common
            if name == ALL_INPUTS or {*candidate.required_inputs} <= {*name.split("+")}
        ]
        # Not `<`, so that NaN counts as worse.
        worse = [name for name in gated if not sign * (new[name] - old[name]) >= -tolerance]
        details = {
            "metric": metric,
            "tolerance": tolerance,
            "champion_metrics_source": source,
            "gated_subsets": gated,
            "compared": {name: {"candidate": new[name], "champion": old[name]} for name in common},
        }
        lines = ", ".join(
            f"{metric} {new[name]:.4f} against {old[name]:.4f}"
            + ("" if name == ALL_INPUTS else f" with {name} only")
            for name in worse or [ALL_INPUTS]
        )
        reason = f"{lines} (tolerance {tolerance:g}; champion's metrics {source})"
        return self._result(not worse, reason, details)

    def _result(self, passed: bool, reason: str, details: Mapping[str, Any] | None = None) -> GateResult:
        return GateResult(self.options.type, passed, reason, details or {})


def _champion_metrics(context: GateContext, champion: ModelVersion) -> tuple[ModelMetrics, str]:
    """Return the champion's metrics on the candidate's rows: recorded ones if the rows are the same, else new ones."""
    same = (
        context.candidate.evaluation_digest is not None
        and context.candidate.evaluation_digest == champion.evaluation_digest
    )
    if same or context.evaluate_champion is None:
        return ModelMetrics(
            champion.evaluation_metrics, champion.by_inputs
        ), "recorded on the same rows" if same else "recorded"
    return context.evaluate_champion(), "evaluated now on the candidate's rows"


def _metric_by_subset(model_metrics: ModelMetrics, metric: str) -> Mapping[str, float]:
    """Return the metric on all inputs, and on each subset of the inputs."""
    found = {ALL_INPUTS: model_metrics.metrics[metric]} if metric in model_metrics.metrics else {}
    return found | {name: part[metric] for name, part in model_metrics.by_inputs.items() if metric in part}
