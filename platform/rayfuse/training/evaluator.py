"""Evaluation of a split over all ranks, with all inputs and with every subset of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfuse.data.collate import Batch, collate
from rayfuse.data.loader import prefetch
from rayfuse.model.evaluation import (
    EvaluationOutputs,
    Subset,
    calibrate,
    collect_outputs,
    compute_metrics,
    details,
    fill_memory_banks,
    nonempty_subsets,
    subset_name,
)
from rayfuse.model.explain import input_importance
from rayfuse.model.fused import task_heads
from rayfuse.spec.job import Job
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.training_data import TrainingData

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_BATCH_SIZE = 256


class Evaluator:
    """Evaluation on the rows of a split. Every rank must call each method, and all ranks get the same result."""

    def __init__(
        self, job: Job, engine: "DeepSpeedEngine", data: TrainingData, context: DistributedContext
    ) -> None:
        self.job, self.engine, self.data, self.context = job, engine, data, context
        self.heads = task_heads(engine.module)

    def compute_metrics(
        self, split: str, input_subsets: Sequence[Subset] | None = None
    ) -> list[dict[str, float]]:
        """Compute the metrics over all rows of a split: once, or for each of the subsets of inputs."""
        return [
            compute_metrics(self.heads, self.job, outputs) for outputs in self.collect(split, input_subsets)
        ]

    def collect(
        self, split: str, input_subsets: Sequence[Subset] | None = None, max_rows: int | None = None
    ) -> list[EvaluationOutputs]:
        """Collect the outputs on the rows of a split, or on at most `max_rows` of them at equal distances."""
        self.engine.eval()
        batches = (batch.to(self.context.device) for batch in prefetch(self.batches(split, max_rows)))
        collected = collect_outputs(self.engine, self.heads, batches, input_subsets)
        if self.context.world_size == 1:
            return collected
        merged = [EvaluationOutputs() for _ in collected]
        for part in self.context.all_gather(collected):
            for into, outputs in zip(merged, part, strict=True):
                into.merge(outputs)
        return merged

    def evaluate_final(self) -> dict[str, Any]:
        """Calibrate on the validation rows, then evaluate once on the test rows, or on the validation rows without.

        Returns `split`, its number of `rows`, `metrics` with all inputs, metrics of every subset of inputs as
        `by_inputs`, `details` of the tasks, the importance of each input as `explain`, and the buffers that were set
        by calibration as `calibration`.
        """
        calibration = {**self._fill_memory_banks(), **calibrate(self.heads, *self.collect("validation"))}
        split = "test" if "test" in self.data.sample_caches else "validation"
        all_inputs, *_ = self.collect(split)
        return {
            "split": split,
            "rows": len(self.data.sample_caches[split]),
            "metrics": compute_metrics(self.heads, self.job, all_inputs),
            "details": details(self.heads, all_inputs),
            "calibration": calibration,
            **self._evaluate_subsets(split),
        }

    def batches(
        self, split: str, max_rows: int | None = None, batch_size: int = _BATCH_SIZE
    ) -> Iterator[Batch]:
        """Yield this rank's part of a split in batches of `batch_size` rows; all ranks yield equally many batches.

        With `max_rows`, of at most that many rows at equal distances.
        """
        samples = self.data.sample_caches[split]
        rows = range(0, len(samples), -(-len(samples) // max_rows) if max_rows else 1)
        longest = -(-len(rows) // self.context.world_size)
        mine = rows[self.context.rank :: self.context.world_size]
        for start in range(0, longest, batch_size):
            numbers = mine[start : start + batch_size]
            yield collate([samples[n] for n in numbers], self.data.modalities, add_dummies=True)

    def _evaluate_subsets(self, split: str) -> Mapping[str, Any]:
        """Return `by_inputs` and `explain`; contributions are measured from the output without any input."""
        inputs = list(self.job.inputs)
        subsets = nonempty_subsets(inputs)
        collected = self.collect(split, [*subsets, ()])
        return {
            "by_inputs": {
                subset_name(subset): compute_metrics(self.heads, self.job, outputs)
                for subset, outputs in zip(subsets, collected[:-1], strict=True)
            },
            "explain": input_importance(
                self.heads, inputs, dict(zip([*subsets, ()], collected, strict=True))
            ),
        }

    def _fill_memory_banks(self) -> dict[str, np.ndarray]:
        max_rows = max(head.memory_bank_size for head in self.heads.values())
        return fill_memory_banks(self.heads, *self.collect("train", max_rows=max_rows)) if max_rows else {}
