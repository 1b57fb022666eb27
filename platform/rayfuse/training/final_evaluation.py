"""Select the best checkpoint or a soup of checkpoints, calibrate it, and evaluate it once on the test rows."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rayfuse.spec.job import Job
from rayfuse.training.checkpoint_manager import CheckpointManager, read_weights
from rayfuse.training.checkpoints import Checkpoint
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.evaluator import Evaluator
from rayfuse.training.model_soup import Soup, greedy_soup, save_soup
from rayfuse.training.optimizer_state import load_engine_weights
from rayfuse.training.state import save_calibration

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


class FinalEvaluation:
    """Evaluation of a finished run. Every rank must call each method."""

    def __init__(
        self,
        job: Job,
        engine: "DeepSpeedEngine",
        context: DistributedContext,
        evaluator: Evaluator,
        checkpoints: CheckpointManager,
        run: str | None = None,
    ) -> None:
        """`run` is the URL of the run's folder, which gets the soup and the calibration."""
        self._job, self._engine, self._context, self._run = job, engine, context, run
        self._evaluator, self._checkpoints = evaluator, checkpoints

    def summarize_best(self) -> dict[str, Any]:
        """Return the URL of the best checkpoint as `checkpoint` and its validation metrics as `best_validation`."""
        best = self._checkpoints.best()[0]
        return {"best_validation": best.metrics, "checkpoint": best.url}

    def run(self) -> dict[str, Any]:
        """Evaluate the soup of the best checkpoints with `train.model_soup`, else the best checkpoint.

        Returns what `summarize_best` returns, for the weights that were evaluated, with the results of
        `evaluate_weights`; with a soup also the number of its checkpoints as `soup`.
        """
        best = self._checkpoints.best()
        if self._job.train.model_soup:
            soup = self._build_soup(best[: self._job.train.model_soup])
            summary: dict[str, Any] = {"best_validation": soup.metrics, "soup": len(soup.ingredients)}
            if self._context.is_main and self._run is not None:
                summary["checkpoint"] = save_soup(soup, self._run)
            weights = soup.weights
        else:
            summary, weights = self.summarize_best(), read_weights(best[0])
        evaluation = self.evaluate_weights(weights)
        calibration = evaluation.pop("calibration")
        if self._context.is_main and self._run is not None:
            save_calibration(calibration, self._run)
        return summary | evaluation

    def evaluate_weights(self, weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Load weights into the engine and return their evaluation (`Evaluator.evaluate_final`)."""
        load_engine_weights(self._engine, weights)
        return self._evaluator.evaluate_final()

    def _build_soup(self, checkpoints: list[Checkpoint]) -> Soup:
        def evaluate(weights: Mapping[str, torch.Tensor]) -> dict[str, float]:
            load_engine_weights(self._engine, weights)
            return self._evaluator.compute_metrics("validation")[0]

        return greedy_soup(map(read_weights, checkpoints), evaluate, self._checkpoints.score)
