"""Typed outputs of a FusedModel: what its forward pass returns, and its losses."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from rayfuse.model.mixup import Mixing
from rayfuse.spec.job import Job


class ModelOutput(NamedTuple):
    """Output of the forward pass of a FusedModel.

    A tuple of dictionaries, because DeepSpeed registers its backward hooks on the tensors that it finds in tuples,
    lists and dictionaries only.
    """

    tasks: dict[str, torch.Tensor]
    """Raw output of each task, float (batch, …)."""
    alignment_losses: dict[str, torch.Tensor] = {}  # noqa: RUF012 - never written to
    """In training mode, the loss of each sample by the type of the alignment loss, float32 (batch,)."""
    mixup: Mixing | None = None
    """In training mode with `train.mixup`, how the samples were mixed."""


@dataclass(frozen=True)
class LossOutput:
    """Losses of a batch, each summed over its samples."""

    tasks: dict[str, torch.Tensor]
    """By task."""
    alignment: dict[str, torch.Tensor] = field(default_factory=dict)
    """By type of the alignment loss."""
    distillation: dict[str, torch.Tensor] = field(default_factory=dict)
    """By task: divergence from the teacher's outputs."""

    def scale_tasks(self, factors: Mapping[str, float]) -> "LossOutput":
        """Return the losses with those of some tasks multiplied by a factor."""
        tasks = {name: loss * factors[name] if name in factors else loss for name, loss in self.tasks.items()}
        return replace(self, tasks=tasks)

    def to_metrics(self) -> Mapping[str, torch.Tensor]:
        """Return all losses under the names they are logged with: TASK, align/TYPE and distillation/TASK."""
        return {
            **self.tasks,
            **{_alignment_metric(name): loss for name, loss in self.alignment.items()},
            **{_distillation_metric(name): loss for name, loss in self.distillation.items()},
        }


def loss_metric_names(job: Job) -> list[str]:
    """Return the names that `LossOutput.to_metrics` uses for a job, in its order."""
    return [
        *job.tasks,
        *(_alignment_metric(options.type) for options in job.align.loss),
        *(_distillation_metric(name) for name in job.tasks if job.train.distillation),
    ]


def _alignment_metric(name: str) -> str:
    return f"align/{name}"


def _distillation_metric(name: str) -> str:
    return f"distillation/{name}"
