"""Evaluation of a split over all ranks, with all inputs and with every subset of them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rayfuse.data.collate import Batch, collate
from rayfuse.data.loader import prefetch
from rayfuse.model.evaluation import (
    EvaluationOutputs,
    Subset,
    calibrate,
    collect_outputs,
    collect_raw_outputs,
    collect_replies,
    compute_metrics,
    decoded_subsets,
    details,
    evaluated_subsets,
    fill_memory_banks,
    nonempty_subsets,
    subset_name,
)
from rayfuse.model.explain import MAX_INPUTS, input_importance
from rayfuse.model.fused import task_heads
from rayfuse.model.tasks import task_class
from rayfuse.model.tasks.accumulators import StoredOutputs
from rayfuse.model.tasks.replies import Replies
from rayfuse.spec.job import Job
from rayfuse.training.deepspeed_config import micro_batch_size
from rayfuse.training.distributed import DistributedContext
from rayfuse.training.training_data import TrainingData

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

_MIN_BATCH_SIZE, _MAX_BATCH_SIZE = 16, 256
_MICRO_BATCHES = 2
"""Rows of an evaluation batch, which needs no gradients, in micro-batches of training."""


def evaluation_batch_size(job: Job, world_size: int) -> int:
    """Return the rows of an evaluation batch of a worker: as many as need about the memory of a training step.

    Losses that compare the samples of a batch are computed on 256 rows, whatever the memory.
    """
    if any(task_class(task).cross_sample_loss for task in job.tasks.values()):
        return _MAX_BATCH_SIZE
    wanted = _MICRO_BATCHES * micro_batch_size(job, world_size)
    return min(_MAX_BATCH_SIZE, max(_MIN_BATCH_SIZE, wanted))


class Evaluator:
    """Evaluation on the rows of a split. Every rank must call each method, and all ranks get the same result."""

    def __init__(
        self, job: Job, engine: "DeepSpeedEngine", data: TrainingData, context: DistributedContext
    ) -> None:
        self.job, self.engine, self.data, self.context = job, engine, data, context
        self.heads = task_heads(engine.module)
        self.batch_size = evaluation_batch_size(job, context.world_size)

    def compute_metrics(
        self, split: str, input_subsets: Sequence[Subset] | None = None
    ) -> list[dict[str, float]]:
        """Compute the metrics over all rows of a split: once, or for each of the subsets of inputs.

        Metrics of decoded texts, which are computed with all inputs only, are those of the task's `decoded_rows`.
        """
        collected = self.collect(split, input_subsets)
        if input_subsets is None:
            collected[0].replies = self._collect_replies(split)
        return [compute_metrics(self.heads, self.job, outputs) for outputs in collected]

    def collect(
        self,
        split: str,
        input_subsets: Sequence[Subset] | None = None,
        decoded: Sequence[Subset] = (),
    ) -> list[EvaluationOutputs]:
        """Accumulate the outputs on the rows of a split; see `rayfuse.model.evaluation.collect_outputs`."""
        batches = self._batches_on_device(split)
        collected = collect_outputs(self.engine, self.heads, batches, input_subsets, decoded)
        if self.context.world_size == 1:
            return collected
        merged = [EvaluationOutputs() for _ in collected]
        for part in self.context.all_gather(collected):
            for into, outputs in zip(merged, part, strict=True):
                into.merge(outputs)
        return merged

    def collect_raw(self, split: str, tasks: Iterable[str], max_rows: int) -> dict[str, StoredOutputs]:
        """Collect the raw outputs of tasks on at most `max_rows` rows of a split, at equal distances."""
        heads = {name: self.heads[name] for name in tasks}
        collected = collect_raw_outputs(self.engine, heads, self._batches_on_device(split, max_rows))
        if self.context.world_size == 1:
            return collected
        merged = {name: StoredOutputs() for name in heads}
        for part in self.context.all_gather(collected):
            for name, outputs in part.items():
                merged[name].merge(outputs)
        return merged

    def evaluate_final(self) -> dict[str, Any]:
        """Calibrate on the validation rows, then evaluate once on the test rows, or on the validation rows without.

        Returns `split`, its number of `rows`, `metrics` with all inputs, metrics by subset of the inputs as
        `by_inputs`, `details` of the tasks, the importance of each input as `explain`, and the buffers that were set
        by calibration as `calibration`.
        """
        calibration = {**self._fill_memory_banks(), **self._calibrate()}
        split = "test" if "test" in self.data.sample_caches else "validation"
        inputs = tuple(self.job.inputs)
        [all_inputs] = self.collect(split, [inputs], decoded_subsets(self.heads, inputs)[:1])
        by_subset = self._collect_subsets(split, all_inputs)
        return {
            "split": split,
            "rows": len(self.data.sample_caches[split]),
            "metrics": compute_metrics(self.heads, self.job, all_inputs),
            "details": details(self.heads, all_inputs, by_subset[()]),
            "calibration": calibration,
            "by_inputs": {
                subset_name(subset): compute_metrics(self.heads, self.job, by_subset[subset])
                for subset in evaluated_subsets(inputs, all_inputs.present)
            },
            "explain": input_importance(self.heads, list(inputs), by_subset),
        }

    def batches(
        self, split: str, max_rows: int | None = None, batch_size: int | None = None
    ) -> Iterator[Batch]:
        """Yield this rank's part of a split in batches of `batch_size` rows; all ranks yield equally many batches.

        By default, batches have the size of an evaluation batch.

        With `max_rows`, of at most that many rows at equal distances.
        """
        batch_size = batch_size or self.batch_size
        samples = self.data.sample_caches[split]
        rows = range(0, len(samples), -(-len(samples) // max_rows) if max_rows else 1)
        longest = -(-len(rows) // self.context.world_size)
        mine = rows[self.context.rank :: self.context.world_size]
        for start in range(0, longest, batch_size):
            numbers = mine[start : start + batch_size]
            yield collate([samples[n] for n in numbers], self.data.modalities, add_dummies=True)

    def _collect_replies(self, split: str) -> dict[str, Replies]:
        """Decode the texts of some rows of a split."""
        limits = {name: head.decoded_rows for name, head in self.heads.items() if head.decoded_rows}
        if not limits:
            return {}
        heads = {name: self.heads[name] for name in limits}
        batches = self._batches_on_device(split, max(limits.values()))
        found = collect_replies(self.engine, heads, batches, tuple(self.job.inputs))
        if self.context.world_size == 1:
            return found
        merged = EvaluationOutputs()
        for part in self.context.all_gather(found):
            merged.merge(EvaluationOutputs(replies=part))
        return merged.replies

    def _collect_subsets(self, split: str, complete: EvaluationOutputs) -> dict[Subset, EvaluationOutputs]:
        """Accumulate the outputs for subsets of the inputs, from all of them, `complete`, to none."""
        inputs = tuple(self.job.inputs)
        reported = evaluated_subsets(inputs, complete.present)
        subsets = [*(nonempty_subsets(inputs) if len(inputs) <= MAX_INPUTS else reported), ()]
        decoded = decoded_subsets(self.heads, inputs)[1:]
        collected = dict(zip(subsets, self.collect(split, subsets, decoded), strict=True))
        collected[inputs].replies = complete.replies
        return collected

    def _batches_on_device(self, split: str, max_rows: int | None = None) -> Iterator[Batch]:
        self.engine.eval()
        return (batch.to(self.context.device) for batch in prefetch(self.batches(split, max_rows)))

    def _fill_memory_banks(self) -> dict[str, np.ndarray]:
        sizes = {name: head.memory_bank_size for name, head in self.heads.items() if head.memory_bank_size}
        if not sizes:
            return {}
        return fill_memory_banks(self.heads, self.collect_raw("train", sizes, max(sizes.values())))

    def _calibrate(self) -> dict[str, float]:
        limits = {name: head.calibration_rows for name, head in self.heads.items() if head.calibration_rows}
        if not limits:
            return {}
        return calibrate(self.heads, self.collect_raw("validation", limits, min(limits.values())))
