"""Bounds that the candidate's own numbers must reach."""

from collections.abc import Iterable, Mapping

from rayfuse.errors import SpecError
from rayfuse.registry.gates.base import Case, Verdict
from rayfuse.spec.problems import nearest
from rayfuse.spec.tasks import METRICS


class Minimum:
    """Each metric must reach its bound; one of which less is better (loss, mae, rmse) must not exceed it."""

    def __init__(self, bounds: Mapping[str, float]) -> None:
        self.bounds = dict(bounds)

    def judge(self, case: Case) -> Verdict:
        """Raises SpecError for a metric that the candidate does not report."""
        measured = case.candidate.judged
        misses = []
        for metric, bound in self.bounds.items():
            if metric not in measured:
                known = nearest(metric, list(measured)) if measured else "it has no metrics"
                raise SpecError(
                    f"--min {metric}: version {case.candidate.version} does not report it; {known}"
                )
            value, at_most = measured[metric], METRICS.get(metric.rpartition("/")[2]) == "min"
            if not (value <= bound if at_most else value >= bound):  # so that NaN misses every bound
                misses.append(f"{metric} {value:.4f} is {'above' if at_most else 'below'} {bound:g}")
        numbers = {
            metric: {"value": measured[metric], "bound": bound} for metric, bound in self.bounds.items()
        }
        where = f" on the {case.candidate.split} rows"
        held = ", ".join(
            f"{metric} {measured[metric]:.4f} (bound {bound:g})" for metric, bound in self.bounds.items()
        )
        return Verdict(
            "minimum", not misses, (", ".join(misses) or held or "no bound given") + where, numbers
        )


def read_bounds(texts: Iterable[str]) -> dict[str, float]:
    """`("answer/accuracy=0.9", …)` as a mapping. Raises SpecError."""
    bounds: dict[str, float] = {}
    for text in texts:
        metric, _, bound = text.partition("=")
        try:
            bounds[metric] = float(bound)
        except ValueError:
            raise SpecError(f"--min {text}: write --min METRIC=BOUND, as in answer/accuracy=0.9") from None
    return bounds
