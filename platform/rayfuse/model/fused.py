"""The model that a job describes: encoders → alignment → fusion → tasks."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.model.alignment import LinearAlignment
from rayfuse.model.encoders import build_encoder
from rayfuse.model.encoders.base import Tokens
from rayfuse.model.fusion import build_fusion
from rayfuse.model.tasks import build_task
from rayfuse.spec.job import Job


class FusedModel(nn.Module):
    """Answers all tasks of a job from whichever inputs its samples have.

    The job's tasks must be fitted (`rayfuse.data.dataset.fit_tasks`).
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: build_encoder(options) for name, options in job.inputs.items()})
        self.alignment = nn.ModuleDict(
            {name: LinearAlignment(encoder.width, job.align.dim) for name, encoder in self.encoders.items()}  # type: ignore[arg-type]
        )
        self.fusion = build_fusion(job.fusion, job.align.dim, list(job.inputs))
        self.tasks = nn.ModuleDict(
            {name: build_task(options, job.align.dim) for name, options in job.tasks.items()}
        )
        self.task_weights = {name: options.weight for name, options in job.tasks.items()}

    def forward(
        self, batch: Batch, subsets: Sequence[Sequence[str]] | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
        """Raw outputs of each task, float (batch, …).

        With `subsets`, a list of them: as if only those inputs had been given. Each is encoded once.
        """
        encoded = {name: self._encode(name, part) for name, part in batch.inputs.items()}
        if subsets is None:
            return self._answer(encoded, batch)
        return [self._answer(encoded, batch.subset(chosen)) for chosen in subsets]

    def _answer(self, encoded: dict[str, Tokens | None], batch: Batch) -> dict[str, torch.Tensor]:
        aligned = {
            name: self.alignment[name](encoded[name], part.index) for name, part in batch.inputs.items()
        }
        fused = self.fusion(aligned)
        return {name: head(fused) for name, head in self.tasks.items()}

    def losses(self, outputs: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss of each task over the batch's samples; fillers count nothing."""
        return {
            name: (head.loss(outputs[name], batch.targets[name]) * batch.weights).sum()  # type: ignore[operator]
            if name in batch.targets
            else outputs[name].sum() * 0.0
            for name, head in self.tasks.items()
        }

    def total_loss(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The tasks' losses, weighted as the spec says."""
        return torch.stack([loss * self.task_weights[name] for name, loss in losses.items()]).sum()

    def _encode(self, name: str, part: EncoderBatch) -> Tokens | None:
        return None if part.features is None else self.encoders[name](**part.features)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: trainable parameters and stored buffers (running statistics)."""
    stored = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**trainable_parameters(model), **buffers}
