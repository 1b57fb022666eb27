"""Collect a model's outputs over samples, whole and for every subset of its inputs, and score them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import nn

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
    losses: dict[str, float] = field(default_factory=dict)
    samples: int = 0

    def add(self, heads: Mapping[str, TaskHead], outputs: Mapping[str, torch.Tensor], batch: Batch) -> None:
        """Add a batch; its fillers do not count."""
        real = batch.weights > 0
        for name, head in heads.items():
            if name in batch.targets:
                chosen, targets = outputs[name][real].float(), batch.targets[name][real]
                self.losses[name] = self.losses.get(name, 0.0) + float(head.loss(chosen, targets).sum())
                self.outputs.setdefault(name, []).append(chosen.cpu().numpy())
                self.targets.setdefault(name, []).append(targets.cpu().numpy())
        self.samples += int(real.sum())

    def merge(self, other: "Outputs") -> None:
        """Add the samples of another worker."""
        for mine, theirs in ((self.outputs, other.outputs), (self.targets, other.targets)):
            for name, arrays in theirs.items():
                mine.setdefault(name, []).extend(arrays)
        for name, loss in other.losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + loss
        self.samples += other.samples


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
        raw, targets = np.concatenate(outputs.outputs[name]), np.concatenate(outputs.targets[name])
        loss = outputs.losses[name] / max(1, outputs.samples)
        total += loss * job.tasks[name].weight
        found[f"{name}/loss"] = loss
        found |= {f"{name}/{metric}": value for metric, value in head.metrics(raw, targets).items()}
    return {"loss": total, **found}


def details(heads: Mapping[str, TaskHead], outputs: Outputs) -> dict[str, Any]:
    """What each task has to report beyond single numbers."""
    return {
        name: head.details(np.concatenate(outputs.outputs[name]), np.concatenate(outputs.targets[name]))
        for name, head in heads.items()
    }


def heads_of(model: nn.Module) -> dict[str, TaskHead]:
    """The task heads of a FusedModel."""
    return dict(model.tasks.items())  # type: ignore[operator, union-attr]
