"""What every task offers."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from rayfuse.model.tokens import Fused


class TaskHead(nn.Module, ABC):
    """Answers one task of a job.

    Evaluation joins the outputs of many batches: their shapes beyond the first axis may differ, and the shorter ones
    are padded with NaN.
    """

    outputs: int | None = None
    """Size of the last axis of raw outputs that a fusion may correct; None where they are none that it could."""
    unit: tuple[float, float] = (0.0, 1.0)
    """About the mean and deviation of raw outputs."""
    explained_as: ClassVar[str] = "output"
    """What the number is that `explained` gives, for people."""
    mixes: ClassVar[bool] = False
    """Whether it answers from the fused vector alone, and each sample for itself, so that mixup may mix vectors."""
    compares: ClassVar[bool] = False
    """Whether a row's loss looks at other rows, so that it is only asked about whole rows, not about their views."""

    def __init__(self, options: Any, dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, fused: Fused) -> torch.Tensor:
        """Raw outputs, float (batch, …)."""

    @abstractmethod
    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Loss of each sample, float32 (batch,). targets: float32 (batch, …), NaN where a sample has fewer."""

    def idle(self, outputs: torch.Tensor) -> torch.Tensor:
        """The loss, 0, of a batch of fillers without targets, from which every parameter still gets a gradient.

        A head whose loss gathers rows of all workers does so here too, or the others would wait for it.
        """
        return outputs.sum() * 0.0

    @abstractmethod
    def answers(self, outputs: torch.Tensor) -> list[dict[str, Any]]:
        """What a caller gets for each sample: plain JSON values."""

    @abstractmethod
    def metrics(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """The metrics that the task's spec promises, but for the loss."""

    def blend(self, outputs: torch.Tensor, trust: torch.Tensor) -> torch.Tensor:
        """Raw outputs of several opinions, float (batch, opinions, …), as one: (batch, …).

        trust: float (batch, opinions), the weight of each; rows sum to 1, and an opinion of weight 0 must not count.
        """
        weights = trust.view(*trust.shape, *[1] * (outputs.ndim - 2))
        return (outputs * weights).sum(dim=1)

    def ballots(self, outputs: torch.Tensor) -> torch.Tensor:
        """The raw outputs of an opinion that has made up its mind, of any shape (…); what it said, where a task
        has no such thing."""
        return outputs

    def explained(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor | None:
        """How much raw outputs (batch, …) speak for the answer that `answered` gives: a number each, float (batch,).

        The contributions of inputs explain this number (`rayfuse.model.explain`). Here the output itself where there is
        one per sample; None, which is not explained, where there are more.
        """
        return outputs.flatten() if outputs.numel() == len(outputs) else None

    def differentiated(self, outputs: torch.Tensor, answered: torch.Tensor) -> torch.Tensor | None:
        """The same for saliency, which follows its gradient: a number that does not saturate, float (batch,)."""
        return self.explained(outputs, answered)

    def divergence(self, outputs: torch.Tensor, target_outputs: torch.Tensor) -> torch.Tensor:
        """How far the outputs of each sample are from others of the same shape, float32 (batch,); 0 where equal.

        It falls with the square of the difference, as both distillation and consistency expect. Unless a task says
        otherwise: the mean of the squared differences.
        """
        return (outputs.float() - target_outputs.float()).square().flatten(1).mean(dim=1)

    def details(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        """More than single numbers, for reports: plain JSON values."""
        return {}

    @property
    def remembers(self) -> int:
        """How many training rows it wants to be given to `remember`."""
        return 0

    def remember(self, outputs: np.ndarray) -> dict[str, np.ndarray]:
        """Keep what is kept of the outputs of training rows once training is over; the stored buffers it set, by name."""
        return {}

    def calibrate(self, outputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
        """Fit what is fitted on validation rows once training is over; the stored buffers it set, by name."""
        return {}


def keep_fusion(outputs: torch.Tensor, fused: Fused) -> torch.Tensor:
    """The same outputs of a head that does not read the fused vector, so that the fusion still gets a gradient."""
    shape = (len(outputs), *([1] * (outputs.ndim - 1)))
    return outputs + fused["vector"].sum(dim=1).reshape(shape).to(outputs.dtype) * 0.0
