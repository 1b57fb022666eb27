"""Cross-validation: a model per fold of the training rows, and mean and standard deviation of their test metrics."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from rayfuse.formatting import format_cross_validation
from rayfuse.spec.job import Job
from rayfuse.training.runs import RunFolder, open_fold

TrainFold = Callable[[Job, RunFolder], Mapping[str, float]]
"""Trains the job of a fold in its folder, or resumes that, and returns its test metrics."""

_RESULT_FILE = "cross_validation.json"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class CrossValidation:
    """Test metrics of each fold."""

    folds: list[dict[str, float]]
    """Test metrics of each fold as TASK/METRIC; none without cross-validation."""

    @property
    def statistics(self) -> dict[str, dict[str, float]]:
        """`mean` and sample standard deviation `std` of each metric that all folds have."""
        names = (
            [name for name in self.folds[0] if all(name in fold for fold in self.folds)] if self.folds else []
        )
        values = {name: [fold[name] for fold in self.folds] for name in names}
        return {
            name: {"mean": float(np.mean(of)), "std": float(np.std(of, ddof=1))}
            for name, of in values.items()
        }

    @property
    def means(self) -> dict[str, float]:
        """Mean of each metric."""
        return {name: found["mean"] for name, found in self.statistics.items()}

    def metrics(self) -> dict[str, float]:
        """Return means and standard deviations by their names in MLflow."""
        return {
            f"{prefix}/{name}": found[key]
            for prefix, key in (("cross_validation", "mean"), ("cross_validation_std", "std"))
            for name, found in self.statistics.items()
        }

    def __str__(self) -> str:
        return format_cross_validation(self.statistics, len(self.folds))


def cross_validate(
    job: Job, run: RunFolder, train_fold: TrainFold, log_metrics: Callable[[dict[str, float]], None]
) -> CrossValidation:
    """Train a model per fold, in folders below that of `run`, and pass mean and deviation of the metrics to `log_metrics`.

    Folds that an earlier attempt of the run has finished are not trained again. Without `data.folds`, or for a single
    fold, nothing is trained.
    """
    if not job.data.folds or job.data.fold:
        return CrossValidation([])
    saved = run.read(_RESULT_FILE)
    if saved is not None:
        return CrossValidation(json.loads(saved))
    folds: list[dict[str, float]] = []
    for fold in range(1, job.data.folds + 1):
        _LOG.info("fold %d of %d", fold, job.data.folds)
        of_fold = job.model_copy(update={"data": job.data.of_fold(fold)})
        folds.append(dict(train_fold(of_fold, open_fold(run, fold))))
    result = CrossValidation(folds)
    _LOG.info("%s", result)
    log_metrics(result.metrics())
    run.write(_RESULT_FILE, json.dumps(folds, indent=1))
    return result
