"""Collect the outputs of a model over samples, for all inputs and for every subset of them, and compute metrics."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rayfuse.data.collate import Batch
from rayfuse.model.tasks import TaskHead
from rayfuse.spec.job import Job

Subset = tuple[str, ...]
"""Names of inputs, in the order of the job."""


def nonempty_subsets(inputs: Sequence[str]) -> list[Subset]:
    """Return every non-empty subset of the inputs, the largest first, names in the order of the job."""
    sizes = range(len(inputs), 0, -1)
    return [chosen for size in sizes for chosen in combinations(inputs, size)]


def subset_name(subset: Subset) -> str:
    """Return the name of a subset in reports: its inputs joined by `+`."""
    return "+".join(subset)


@dataclass
class EvaluationOutputs:
    """Raw outputs and targets of samples."""

    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By task, float (samples, …), one array per batch."""
    targets: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By task, float (samples, …), one array per batch."""
    present: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By input, bool (samples,): which samples have it."""
    losses: dict[str, float] = field(default_factory=dict)
    """By task, summed over the samples."""
    num_samples: int = 0
    """Number of samples, without fillers."""

    def add(self, heads: Mapping[str, TaskHead], outputs: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Add the raw outputs of a batch by task; its filler samples are left out."""
        real = batch.weights > 0
        for name, head in heads.items():
            if name in batch.targets and real.any():
                chosen, targets = outputs[name][real].float(), batch.targets[name][real]
                self.losses[name] = self.losses.get(name, 0.0) + float(head.loss(chosen, targets).sum())
                self.outputs.setdefault(name, []).append(chosen.cpu().numpy())
                self.targets.setdefault(name, []).append(targets.cpu().numpy())
        for name, part in batch.inputs.items():
            self.present.setdefault(name, []).append((part.index[real] >= 0).any(dim=1).cpu().numpy())
        self.num_samples += int(real.sum())

    def for_task(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Return all outputs and targets of a task, each (samples, …)."""
        return _concatenate_padded(self.outputs[task]), _concatenate_padded(self.targets[task])

    def merge(self, other: "EvaluationOutputs") -> None:
        """Add the samples of another worker."""
        for mine, theirs in (
            (self.outputs, other.outputs),
            (self.targets, other.targets),
            (self.present, other.present),
        ):
            for name, arrays in theirs.items():
                mine.setdefault(name, []).extend(arrays)
        for name, loss in other.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss
        self.num_samples += other.num_samples


def _concatenate_padded(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenate along the first axis; pad the other axes with NaN to the longest."""
    shape = np.max([array.shape[1:] for array in arrays], axis=0)
    if all(array.shape[1:] == tuple(shape) for array in arrays):
        return np.concatenate(arrays)
    return np.concatenate(
        [
            np.pad(
                array,
                [(0, 0), *((0, most - size) for most, size in zip(shape, array.shape[1:], strict=True))],
                constant_values=np.nan,
            )
            for array in arrays
        ]
    )


def collect_outputs(
    forward: Callable[..., Any],
    heads: Mapping[str, TaskHead],
    batches: Iterable[Batch],
    subsets: Sequence[Subset] | None = None,
) -> list[EvaluationOutputs]:
    """Collect outputs over `batches` for each of the subsets of inputs, or once for all inputs.

    `forward` is a FusedModel or a DeepSpeed engine with one, in evaluation mode.
    """
    collected = [EvaluationOutputs() for _ in subsets or [()]]
    with torch.inference_mode():
        for batch in batches:
            results = forward(batch, subsets) if subsets is not None else [forward(batch)]
            for outputs, result in zip(collected, results, strict=True):
                outputs.add(heads, result.tasks, batch)
    return collected


def compute_metrics(heads: Mapping[str, TaskHead], job: Job, outputs: EvaluationOutputs) -> dict[str, float]:
    """Compute every metric of the job: `loss` and TASK/METRIC."""
    found: dict[str, float] = {}
    total = 0.0
    for name, head in heads.items():
        raw, targets = outputs.for_task(name)
        loss = outputs.losses[name] / max(1, outputs.num_samples)
        weight = job.tasks[name].weight
        total += loss * (1.0 if weight == "learned" else weight)
        found[f"{name}/loss"] = loss
        found |= {f"{name}/{metric}": value for metric, value in head.metrics(raw, targets).items()}
    return {"loss": total, **found}


def fill_memory_banks(heads: Mapping[str, TaskHead], outputs: EvaluationOutputs) -> dict[str, np.ndarray]:
    """Fill the memory banks of tasks with outputs on training rows; return the changed buffers of the model by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, head in heads.items()
        if head.memory_bank_size
        for buffer, value in head.fill_memory_bank(outputs.for_task(name)[0]).items()
    }


def calibrate(heads: Mapping[str, TaskHead], outputs: EvaluationOutputs) -> dict[str, float]:
    """Calibrate the tasks on validation rows; return the changed buffers of the model by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, head in heads.items()
        for buffer, value in head.calibrate(*outputs.for_task(name)).items()
    }


def details(heads: Mapping[str, TaskHead], outputs: EvaluationOutputs) -> dict[str, Any]:
    """Return the details that each task reports in addition to scalar metrics, such as a confusion matrix."""
    return {name: head.details(*outputs.for_task(name)) for name, head in heads.items()}
