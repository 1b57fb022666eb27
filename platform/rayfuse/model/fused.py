"""The model that a job describes: encoders → alignment → fusion → tasks."""

from collections.abc import Sequence

import torch
from torch import nn

from rayfuse.data.batches import Batch, EncoderBatch
from rayfuse.model.alignment import build_alignment
from rayfuse.model.encoders import build_encoder
from rayfuse.model.fusion import Joined, build_fusion
from rayfuse.model.tasks import TaskHead, build_task
from rayfuse.model.tokens import Fused, Tokens
from rayfuse.spec.job import Job

_WORDS = "word_starts"
"""A feature that no encoder reads: int64 (values, words), the token where each word begins, -1 for padding."""


class FusedModel(nn.Module):
    """Answers all tasks of a job from whichever inputs its samples have.

    The job's inputs and tasks must be fitted (`rayfuse.data.dataset.fit`).
    """

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: build_encoder(options) for name, options in job.inputs.items()})
        self.alignment = nn.ModuleDict(
            {name: build_alignment(job.align, encoder.width) for name, encoder in self.encoders.items()}  # type: ignore[arg-type]
        )
        self.fusion = build_fusion(job.fusion, job.align.dim, list(job.inputs))
        self.tasks = nn.ModuleDict(
            {name: build_task(options, job.align.dim) for name, options in job.tasks.items()}
        )
        self.fusion.attach(heads_of(self))
        self.task_weights = {name: options.weight for name, options in job.tasks.items()}
        learned = [name for name, weight in self.task_weights.items() if weight == "learned"]
        self.log_variances = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learned})

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

    def fuse(self, encoded: dict[str, Tokens | None], batch: Batch) -> Fused:
        """What the tasks answer from."""
        aligned = {
            name: self.alignment[name](encoded[name], part.index) for name, part in batch.inputs.items()
        }
        words = {name: found for name, part in batch.inputs.items() if (found := _words(part)) is not None}
        joined: Joined = self.fusion(aligned)
        return {**joined, "inputs": aligned, "words": words}

    def _answer(self, encoded: dict[str, Tokens | None], batch: Batch) -> dict[str, torch.Tensor]:
        fused = self.fuse(encoded, batch)
        return {name: self.fusion.answer(name, head, fused) for name, head in heads_of(self).items()}

    def losses(self, outputs: dict[str, torch.Tensor], batch: Batch) -> dict[str, torch.Tensor]:
        """Summed loss of each task over the batch's samples; fillers count nothing."""
        return {
            name: (head.loss(outputs[name], batch.targets[name]) * batch.weights).sum()  # type: ignore[operator]
            if name in batch.targets
            else head.idle(outputs[name])  # type: ignore[operator]
            for name, head in self.tasks.items()
        }

    def total_loss(self, losses: dict[str, torch.Tensor], batch: Batch) -> torch.Tensor:
        """The tasks' summed losses, weighted as the spec says."""
        return torch.stack([self._weighted(name, loss, batch) for name, loss in losses.items()]).sum()

    def _weighted(self, name: str, loss: torch.Tensor, batch: Batch) -> torch.Tensor:
        weight = self.task_weights[name]
        if weight != "learned":
            return loss * weight
        log_variance = self.log_variances[name]
        return loss * torch.exp(-log_variance) + log_variance * batch.weights.sum()

    def _encode(self, name: str, part: EncoderBatch) -> Tokens | None:
        if part.features is None:
            return None
        return self.encoders[name](**{key: value for key, value in part.features.items() if key != _WORDS})


def heads_of(model: nn.Module) -> dict[str, TaskHead]:
    """The task heads of a FusedModel."""
    return dict(model.tasks.items())  # type: ignore[operator, union-attr]


def _words(part: EncoderBatch) -> torch.Tensor | None:
    """Where the words of each sample begin, int64 (batch, words); None for an input that is not made of words."""
    if part.features is None or _WORDS not in part.features:
        return None
    first = part.index[:, 0]
    starts = part.features[_WORDS][first.clamp(min=0)]
    return starts.masked_fill((first < 0).unsqueeze(1), -1)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What training changes, by name: trainable parameters and stored buffers (running statistics)."""
    stored = set(model.state_dict())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {**trainable_parameters(model), **buffers}
