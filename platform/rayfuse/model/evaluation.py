"""Collect a model's outputs over samples, whole and for every subset of its inputs, and score them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rayfuse.data.batches import Batch
from rayfuse.model.tasks import TaskHead
from rayfuse.spec.job import Job

Subset = tuple[str, ...]


def subsets(inputs: Sequence[str]) -> list[Subset]:
    """Every non-empty subset of the inputs, the whole first, names in the spec's order."""
    sizes = range(len(inputs), 0, -1)
    return [chosen for size in sizes for chosen in combinations(inputs, size)]


def subset_name(subset: Subset) -> str:
    return "+".join(subset)


@dataclass
class Outputs:
    """Raw outputs and targets of some samples, by task: float arrays (samples, …)."""

    outputs: dict[str, list[np.ndarray]] = field(default_factory=dict)
    targets: dict[str, list[np.ndarray]] = field(default_factory=dict)
    present: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By input, bool (samples,): which samples have it."""
    losses: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def add(self, heads: Mapping[str, TaskHead], outputs: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Add a batch; its fillers do not count."""
        real = batch.weights > 0
        for name, head in heads.items():
            if name in batch.targets and real.any():
                chosen, targets = outputs[name][real].float(), batch.targets[name][real]
                self.losses[name] = self.losses.get(name, 0.0) + float(head.loss(chosen, targets).sum())
                self.outputs.setdefault(name, []).append(chosen.cpu().numpy())
                self.targets.setdefault(name, []).append(targets.cpu().numpy())
        for name, part in batch.inputs.items():
            self.present.setdefault(name, []).append((part.index[real] >= 0).any(dim=1).cpu().numpy())
        self.samples += int(real.sum())

    def of(self, task: str) -> tuple[np.ndarray, np.ndarray]:
        """All outputs and targets of a task, (samples, …)."""
        return _joined(self.outputs[task]), _joined(self.targets[task])

    def merge(self, other: "Outputs") -> None:
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
        self.samples += other.samples


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Arrays along their first axis; others are padded with NaN to the longest."""
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


def collect(
    forward: Callable[..., Any],
    heads: Mapping[str, TaskHead],
    batches: Iterable[Batch],
    chosen: Sequence[Subset] | None = None,
) -> list[Outputs]:
    """Outputs over `batches` for each of the subsets `chosen`, or for the samples as they are.

    `forward` is a FusedModel or an engine around one, in evaluation mode.
    """
    collected = [Outputs() for _ in chosen or [()]]
    with torch.inference_mode():
        for batch in batches:
            results = forward(batch, chosen) if chosen is not None else [forward(batch)]
            for outputs, result in zip(collected, results, strict=True):
                outputs.add(heads, result, batch)
    return collected


def score(heads: Mapping[str, TaskHead], job: Job, outputs: Outputs) -> dict[str, float]:
    """Every metric of the job: `loss` and TASK/METRIC."""
    found: dict[str, float] = {}
    total = 0.0
    for name, head in heads.items():
        raw, targets = outputs.of(name)
        loss = outputs.losses[name] / max(1, outputs.samples)
        weight = job.tasks[name].weight
        total += loss * (1.0 if weight == "learned" else weight)
        found[f"{name}/loss"] = loss
        found |= {f"{name}/{metric}": value for metric, value in head.metrics(raw, targets).items()}
    return {"loss": total, **found}


def remember(heads: Mapping[str, TaskHead], outputs: Outputs) -> dict[str, np.ndarray]:
    """Let tasks keep what they want of training rows; the buffers of the model that were set, by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, head in heads.items()
        if head.remembers
        for buffer, value in head.remember(outputs.of(name)[0]).items()
    }


def calibrate(heads: Mapping[str, TaskHead], outputs: Outputs) -> dict[str, float]:
    """Fit what tasks fit on validation rows; the buffers of the model that were set, by name."""
    return {
        f"tasks.{name}.{buffer}": value
        for name, head in heads.items()
        for buffer, value in head.calibrate(*outputs.of(name)).items()
    }


def details(heads: Mapping[str, TaskHead], outputs: Outputs) -> dict[str, Any]:
    """What each task has to report beyond single numbers."""
    return {name: head.details(*outputs.of(name)) for name, head in heads.items()}
